"""Where a server is, and the user and password that it asks for: used, and never shown."""

import base64
import os
import re
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from kood.errors import UserError
from kood.process import GRPC_PROXIES
from kood.text import masked

__all__ = ["Address"]


@dataclass(frozen=True)
class Address:
    """The address of a TF Serving.

    Attributes:
        scheme: "http", "https" or "grpc".
        place: `host:port`.
        path: What stands before TF Serving's own paths, where another server hands them on to it; "" or "/...".
        authorization: The header of basic authentication (RFC 7617), "" where the address names no user.
    """

    scheme: str
    place: str
    path: str = ""
    authorization: str = field(default="", repr=False)

    @classmethod
    def of(cls, url: str) -> "Address":
        """Reads an address.

        Args:
            url: `http://HOST:PORT`, `https://...` or `grpc://...`, with `USER:PASSWORD@` before the host where the
                server asks for them. Signs that have a meaning in an address stand percent-encoded in both, such as %40
                for @.

        Raises:
            UserError: it is none. The message shows neither user nor password.
        """
        shown = _shown(url)
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            # The reason may quote a part of a password that holds a colon or a bracket.
            why = "its host or port" if "@" in url else error
            raise UserError(f"--url {shown}: not an address ({why}){_ENCODE}") from None
        if parts.scheme not in ("http", "https", "grpc") or not host:
            raise UserError(f"--url {shown}: write http://HOST:8501 for TF Serving's REST port, or grpc://HOST:8500")
        if parts.query or parts.fragment or "@" in parts.path or any(c.isspace() for c in url):
            raise UserError(f"--url {shown}: an address ends before ? and # and has no blanks{_ENCODE}")
        if parts.scheme == "grpc" and port is None:
            raise UserError(f"--url {shown}: name the port too, grpc://HOST:8500")
        given = ""
        if parts.username is not None:
            both = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            given = "Basic " + base64.b64encode(both.encode()).decode()
        return cls(parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), given)

    @property
    def shown(self) -> str:
        """The address as messages and tables have it."""
        return f"{self.scheme}://{self.place}{self.path}"

    @staticmethod
    def without_secrets(text: str) -> str:
        """A message of gRPC, which quotes a proxy that it cannot read."""
        for name in GRPC_PROXIES:
            proxy = os.environ.get(name, "")
            if "@" in proxy:
                text = text.replace(urlsplit(proxy).netloc or proxy, "***")
        return masked(text)


#: What to do where a user or a password is taken for another part of the address.
_ENCODE = "; in a user or a password write / ? # @ : [ ] and blanks percent-encoded (%2F %3F %23 %40 %3A %5B %5D %20)"


def _shown(url: str) -> str:
    """An address that cannot be read, without what may be secret in it: all before the last @, all after ? and #."""
    scheme = re.match(r"[\w+.-]+://", url)
    _, given, place = url.removeprefix(scheme[0] if scheme else "").rpartition("@")
    return (scheme[0] if scheme else "") + ("***@" if given else "") + re.split("[?#]", place)[0]
