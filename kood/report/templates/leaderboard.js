"use strict";
for (const board of document.querySelectorAll(".board")) {
  const table = board.querySelector("table"), body = table.tBodies[0], rows = [...body.rows];
  const heads = [...table.tHead.rows[0].cells], box = board.querySelector(".filter");
  const field = box.querySelector("input"), count = box.querySelector("output");
  const words = new Map(rows.map(row => [
    row, [...row.querySelectorAll(".name")].map(cell => cell.textContent).join(" ").toLowerCase(),
  ]));

  function filter() {
    const wanted = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) row.hidden = !wanted.every(word => words.get(row).includes(word));
    count.textContent = `${rows.filter(row => !row.hidden).length} of ${rows.length}`;
  }

  function sort(index) {
    const head = heads[index], values = new Map(rows.map(row => [row, row.cells[index].dataset.value]));
    const there = [...values.values()].filter(value => value !== "");
    const figures = there.every(value => !Number.isNaN(Number(value)));
    const now = head.getAttribute("aria-sort");
    const way = now ? (now === "ascending" ? "descending" : "ascending") : head.dataset.first;
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", way);
    const sign = way === "ascending" ? 1 : -1;
    const sorted = [...rows].sort((a, b) => {
      const [one, other] = [values.get(a), values.get(b)];
      if (one === "" || other === "") return (one === "") - (other === "");  // What is missing stands last.
      return sign * (figures ? one - other : one.localeCompare(other));
    });
    body.append(...sorted);
  }

  heads.forEach((head, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(index));
    head.append(button);
  });
  field.addEventListener("input", filter);
  box.hidden = false;
  filter();
}
