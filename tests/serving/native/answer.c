/* Asks a SavedModel about images through TensorFlow's C interface, without Python: what a C or Go server does.
 *
 *   answer FOLDER INPUT BATCH HEIGHT WIDTH CHANNELS OUTPUT...  < pixels, uint8, image after image
 *
 * INPUT and OUTPUT are the names that the signature gives its tensors, such as serving_default_images:0. Of each output a line
 * is printed: numbers, or the bytes of strings, parted by spaces.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensorflow/c/c_api.h"
#include "tensorflow/c/tf_tstring.h"

static void check(TF_Status* status, const char* what) {
  if (TF_GetCode(status) == TF_OK) return;
  fprintf(stderr, "%s: %s\n", what, TF_Message(status));
  exit(1);
}

static TF_Output port(TF_Graph* graph, const char* tensor) {
  char name[512];
  snprintf(name, sizeof name, "%s", tensor);
  char* colon = strrchr(name, ':');
  int index = 0;
  if (colon) {
    *colon = 0;
    index = atoi(colon + 1);
  }
  TF_Output found = {TF_GraphOperationByName(graph, name), index};
  if (!found.oper) {
    fprintf(stderr, "the graph has no operation %s\n", name);
    exit(1);
  }
  return found;
}

static void print(const TF_Tensor* tensor) {
  const void* data = TF_TensorData(tensor);
  for (int64_t i = 0; i < TF_TensorElementCount(tensor); i++) {
    switch (TF_TensorType(tensor)) {
      case TF_FLOAT: printf("%.9g ", ((const float*)data)[i]); break;
      case TF_INT64: printf("%lld ", (long long)((const int64_t*)data)[i]); break;
      case TF_BOOL: printf("%d ", ((const unsigned char*)data)[i]); break;
      case TF_STRING: {
        const TF_TString* text = &((const TF_TString*)data)[i];
        printf("%.*s ", (int)TF_TString_GetSize(text), TF_TString_GetDataPointer(text));
        break;
      }
      default: fprintf(stderr, "an output of a type that this program does not print\n"); exit(1);
    }
  }
  printf("\n");
}

int main(int count, char** arguments) {
  if (count < 8) {
    fprintf(stderr, "usage: answer FOLDER INPUT BATCH HEIGHT WIDTH CHANNELS OUTPUT... < pixels\n");
    return 2;
  }
  TF_Status* status = TF_NewStatus();
  TF_Graph* graph = TF_NewGraph();
  TF_SessionOptions* options = TF_NewSessionOptions();
  const char* tags[] = {"serve"};
  TF_Session* session = TF_LoadSessionFromSavedModel(options, NULL, arguments[1], tags, 1, graph, NULL, status);
  check(status, arguments[1]);

  int64_t shape[4];
  size_t bytes = 1;
  for (int i = 0; i < 4; i++) {
    shape[i] = atoll(arguments[3 + i]);
    bytes *= (size_t)shape[i];
  }
  TF_Tensor* images = TF_AllocateTensor(TF_UINT8, shape, 4, bytes);
  if (fread(TF_TensorData(images), 1, bytes, stdin) != bytes) {
    fprintf(stderr, "fewer pixels came than the shape says\n");
    return 1;
  }
  TF_Output input = port(graph, arguments[2]);
  int outputs = count - 7;
  TF_Output* asked = calloc((size_t)outputs, sizeof *asked);
  TF_Tensor** answers = calloc((size_t)outputs, sizeof *answers);
  for (int i = 0; i < outputs; i++) asked[i] = port(graph, arguments[7 + i]);
  TF_SessionRun(session, NULL, &input, &images, 1, asked, answers, outputs, NULL, 0, NULL, status);
  check(status, "run");
  for (int i = 0; i < outputs; i++) {
    print(answers[i]);
    TF_DeleteTensor(answers[i]);
  }
  TF_DeleteTensor(images);
  TF_CloseSession(session, status);
  TF_DeleteSession(session, status);
  TF_DeleteGraph(graph);
  TF_DeleteSessionOptions(options);
  TF_DeleteStatus(status);
  free(asked);
  free(answers);
  return 0;
}
