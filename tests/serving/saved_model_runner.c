/* Runs requests against a SavedModel by TensorFlow's C library, as a model server would: no Python, no Keras.

     saved_model_runner SAVED_MODEL REQUESTS ANSWERS

   Loads the tag `serve`, reads the signatures from the meta graph, and answers each request of the first file in the
   second. All numbers are little-endian, a text or a block of bytes is its length as u32 or u64 and then its bytes.
     request: signature text, u32 inputs, tensors          tensor: name text, i32 dtype, i32 rank, i64 dims, u64 block
     answer:  i32 code, message text, i64 peak memory in KiB, u32 outputs, tensors
   The block of a string tensor is its texts one after another. An input that is left out gets the signature's default.
   Exits with 1 if the model cannot be loaded or a file cannot be read, and says why on stderr. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensorflow/c/c_api.h"

#define MAX_TENSORS 16
#define MAX_RANK 16
#define NAME_BYTES 128

typedef struct {
  const uint8_t *at, *end;
} Bytes;

typedef struct {
  char name[NAME_BYTES];
  TF_Output tensor;
  TF_Tensor *fallback; /* the signature's default, or NULL */
} Port;

typedef struct {
  char name[NAME_BYTES];
  Port inputs[MAX_TENSORS], outputs[MAX_TENSORS];
  int num_inputs, num_outputs;
} Signature;

static void die(const char *what, const char *why) {
  fprintf(stderr, "saved_model_runner: %s: %s\n", what, why);
  exit(1);
}

static Bytes read_file(const char *path) {
  FILE *file = fopen(path, "rb");
  if (!file) die(path, "cannot be opened");
  fseek(file, 0, SEEK_END);
  long size = ftell(file);
  rewind(file);
  uint8_t *data = malloc(size ? size : 1);
  if (!data || fread(data, 1, size, file) != (size_t)size) die(path, "cannot be read");
  fclose(file);
  return (Bytes){data, data + size};
}

/* ---- protocol buffers: just enough to find the signatures ---- */

static uint64_t varint(Bytes *bytes) {
  uint64_t value = 0;
  for (int shift = 0; shift < 64 && bytes->at < bytes->end; shift += 7) {
    uint8_t byte = *bytes->at++;
    value |= (uint64_t)(byte & 127) << shift;
    if (byte < 128) return value;
  }
  die("meta graph", "bad varint");
  return 0;
}

/* The next field of a message: its number, or 0 at the end; a number in *value or a block in *inside. */
static int next_field(Bytes *message, uint64_t *value, Bytes *inside) {
  if (message->at >= message->end) return 0;
  uint64_t key = varint(message), size = 0;
  *inside = (Bytes){message->at, message->at};
  switch (key & 7) {
    case 0:
      *value = varint(message);
      return (int)(key >> 3);
    case 1: size = 8; break;
    case 2: size = varint(message); break;
    case 5: size = 4; break;
    default: die("meta graph", "bad wire type");
  }
  if (size > (uint64_t)(message->end - message->at)) die("meta graph", "cut off");
  *inside = (Bytes){message->at, message->at + size};
  message->at += size;
  return (int)(key >> 3);
}

static void copy_text(char *target, Bytes text) {
  size_t size = text.end - text.at;
  if (size >= NAME_BYTES) die("meta graph", "a name is too long");
  memcpy(target, text.at, size);
  target[size] = 0;
}

/* Entry of a map<string, message>: field 1 is the key, field 2 the value. */
static Bytes map_entry(Bytes entry, char *key) {
  Bytes inside, message = {NULL, NULL};
  uint64_t value;
  for (int field; (field = next_field(&entry, &value, &inside));) {
    if (field == 1) copy_text(key, inside);
    if (field == 2) message = inside;
  }
  return message;
}

static TF_Output find_tensor(TF_Graph *graph, Bytes tensor_info) {
  Bytes inside;
  uint64_t value;
  char name[NAME_BYTES] = "";
  for (int field; (field = next_field(&tensor_info, &value, &inside));)
    if (field == 1) copy_text(name, inside);
  char *colon = strrchr(name, ':');
  if (!colon) die("a signature's tensor has no index", name);
  *colon = 0;
  TF_Output output = {TF_GraphOperationByName(graph, name), atoi(colon + 1)};
  if (!output.oper) die("the graph has no operation", name);
  return output;
}

/* A default of one number or one empty string, which is all that our signatures have. */
static TF_Tensor *default_tensor(Bytes proto) {
  Bytes inside, dim, size_field;
  uint64_t value, dtype = 0, size;
  int64_t dims[MAX_RANK];
  int rank = 0;
  uint8_t number[8] = {0};
  for (int field; (field = next_field(&proto, &value, &inside));) {
    if (field == 1) dtype = value;
    if (field == 2)
      while (next_field(&inside, &value, &dim) == 2)
        if (rank < MAX_RANK && next_field(&dim, &size, &size_field) == 1) dims[rank++] = (int64_t)size;
    if ((field == 4 || field == 6) && inside.end - inside.at == 8) memcpy(number, inside.at, 8);
    if (field == 10) {
      uint64_t whole = varint(&inside);
      memcpy(number, &whole, 8);
    }
  }
  TF_Tensor *tensor = TF_AllocateTensor(dtype, dims, rank, dtype == TF_STRING ? sizeof(TF_TString) : 8);
  if (dtype == TF_STRING)
    TF_StringInit(TF_TensorData(tensor));
  else
    memcpy(TF_TensorData(tensor), number, 8);
  return tensor;
}

static Port *port_named(Port *ports, int count, const char *name) {
  for (int i = 0; i < count; i++)
    if (!strcmp(ports[i].name, name)) return &ports[i];
  return NULL;
}

static Signature read_signature(TF_Graph *graph, Bytes entry) {
  static const Signature none;
  Signature signature = none;
  Bytes definition = map_entry(entry, signature.name), rest = definition, inside;
  uint64_t value;
  for (int field; (field = next_field(&rest, &value, &inside));) {
    if (field != 1 && field != 2) continue;
    Port *ports = field == 1 ? signature.inputs : signature.outputs;
    int *count = field == 1 ? &signature.num_inputs : &signature.num_outputs;
    if (*count == MAX_TENSORS) die(signature.name, "too many tensors");
    Port *port = &ports[(*count)++];
    port->tensor = find_tensor(graph, map_entry(inside, port->name));
  }
  rest = definition;
  for (int field; (field = next_field(&rest, &value, &inside));) {
    if (field != 4) continue;
    char name[NAME_BYTES] = "";
    TF_Tensor *tensor = default_tensor(map_entry(inside, name));
    Port *port = port_named(signature.inputs, signature.num_inputs, name);
    if (!port) die("a default without an input", name);
    port->fallback = tensor;
  }
  return signature;
}

/* ---- requests ---- */

static void take(Bytes *requests, void *target, uint64_t size) {
  if (size > (uint64_t)(requests->end - requests->at)) die("requests", "cut off");
  memcpy(target, requests->at, size);
  requests->at += size;
}

static void take_text(Bytes *requests, char *target) {
  uint32_t size;
  take(requests, &size, 4);
  if (size >= NAME_BYTES) die("requests", "a name is too long");
  take(requests, target, size);
  target[size] = 0;
}

/* As a server's parser does: NULL unless the block is exactly what type and shape ask for. */
static TF_Tensor *make_tensor(int32_t dtype, const int64_t *dims, int rank, Bytes block) {
  uint64_t count = 1, size = block.end - block.at;
  for (int i = 0; i < rank; i++) {
    if (dims[i] < 0 || (dims[i] && count > UINT64_C(1) << 40) || __builtin_mul_overflow(count, (uint64_t)dims[i], &count))
      return NULL;
  }
  if (dtype == TF_STRING) {
    if (count > size) return NULL; /* four bytes of length each, at least */
    TF_Tensor *tensor = TF_AllocateTensor(TF_STRING, dims, rank, count * sizeof(TF_TString));
    TF_TString *texts = TF_TensorData(tensor);
    for (uint64_t i = 0; i < count; i++) TF_StringInit(&texts[i]);
    for (uint64_t i = 0; i < count; i++) {
      uint32_t length;
      if (block.end - block.at < 4) goto malformed;
      memcpy(&length, block.at, 4);
      block.at += 4;
      if (length > (uint64_t)(block.end - block.at)) goto malformed;
      TF_StringCopy(&texts[i], (const char *)block.at, length);
      block.at += length;
    }
    if (block.at == block.end) return tensor;
  malformed:
    TF_DeleteTensor(tensor);
    return NULL;
  }
  uint64_t element = TF_DataTypeSize(dtype), needed;
  if (!element || __builtin_mul_overflow(count, element, &needed) || needed != size) return NULL;
  TF_Tensor *tensor = TF_AllocateTensor(dtype, dims, rank, size);
  memcpy(TF_TensorData(tensor), block.at, size);
  return tensor;
}

static void put(FILE *answers, const void *data, size_t size) {
  if (fwrite(data, 1, size, answers) != size) die("answers", "cannot be written");
}

static void put_text(FILE *answers, const char *text, uint32_t size) {
  put(answers, &size, 4);
  put(answers, text, size);
}

static void put_tensor(FILE *answers, const Port *port, TF_Tensor *tensor) {
  int32_t dtype = TF_TensorType(tensor), rank = TF_NumDims(tensor);
  put_text(answers, port->name, strlen(port->name));
  put(answers, &dtype, 4);
  put(answers, &rank, 4);
  for (int i = 0; i < rank; i++) {
    int64_t dim = TF_Dim(tensor, i);
    put(answers, &dim, 8);
  }
  uint64_t size = TF_TensorByteSize(tensor);
  if (dtype != TF_STRING) {
    put(answers, &size, 8);
    put(answers, TF_TensorData(tensor), size);
    return;
  }
  const TF_TString *texts = TF_TensorData(tensor);
  int64_t count = TF_TensorElementCount(tensor);
  size = 0;
  for (int64_t i = 0; i < count; i++) size += 4 + TF_StringGetSize(&texts[i]);
  put(answers, &size, 8);
  for (int64_t i = 0; i < count; i++)
    put_text(answers, TF_StringGetDataPointer(&texts[i]), TF_StringGetSize(&texts[i]));
}

/* Not getrusage: its peak is the parent's, where that was larger when it started this process. */
static int64_t peak_kibibytes(void) {
  char line[256];
  long peak = 0;
  FILE *status = fopen("/proc/self/status", "r");
  if (!status) die("open", "/proc/self/status");
  while (fgets(line, sizeof line, status) && sscanf(line, "VmHWM: %ld", &peak) != 1) {
  }
  fclose(status);
  return peak;
}

static void answer(Bytes *requests, FILE *answers, TF_Session *session, Signature *signatures, int num_signatures) {
  char signature_name[NAME_BYTES];
  uint32_t num_tensors;
  take_text(requests, signature_name);
  take(requests, &num_tensors, 4);
  Signature *signature = NULL;
  for (int i = 0; i < num_signatures; i++)
    if (!strcmp(signatures[i].name, signature_name)) signature = &signatures[i];
  const char *problem = signature ? NULL : "no such signature";

  TF_Tensor *given[MAX_TENSORS] = {NULL};
  for (uint32_t i = 0; i < num_tensors; i++) {
    char name[NAME_BYTES];
    int32_t dtype, rank;
    int64_t dims[MAX_RANK];
    uint64_t size;
    take_text(requests, name);
    take(requests, &dtype, 4);
    take(requests, &rank, 4);
    if (rank < 0 || rank > MAX_RANK) die("requests", "bad rank");
    take(requests, dims, 8 * (uint64_t)rank);
    take(requests, &size, 8);
    if (size > (uint64_t)(requests->end - requests->at)) die("requests", "cut off");
    Bytes block = {requests->at, requests->at + size};
    requests->at += size;
    if (problem) continue;
    Port *port = port_named(signature->inputs, signature->num_inputs, name);
    if (!port) {
      problem = "no such input";
    } else if (given[port - signature->inputs]) {
      problem = "an input is given twice";
    } else if (!(given[port - signature->inputs] = make_tensor(dtype, dims, rank, block))) {
      problem = "a tensor's bytes do not fit its type and shape";
    }
  }

  TF_Status *status = TF_NewStatus();
  TF_Output feeds[MAX_TENSORS], fetches[MAX_TENSORS];
  TF_Tensor *values[MAX_TENSORS], *results[MAX_TENSORS] = {NULL};
  int num_feeds = 0;
  if (problem) {
    TF_SetStatus(status, TF_INVALID_ARGUMENT, problem);
  } else {
    for (int i = 0; i < signature->num_inputs; i++) {
      TF_Tensor *value = given[i] ? given[i] : signature->inputs[i].fallback;
      if (!value) continue;
      feeds[num_feeds] = signature->inputs[i].tensor;
      values[num_feeds++] = value;
    }
    for (int i = 0; i < signature->num_outputs; i++) fetches[i] = signature->outputs[i].tensor;
    TF_SessionRun(session, NULL, feeds, values, num_feeds, fetches, results, signature->num_outputs, NULL, 0, NULL,
                  status);
  }

  int32_t code = TF_GetCode(status);
  int64_t peak = peak_kibibytes();
  uint32_t num_results = code == TF_OK ? signature->num_outputs : 0;
  put(answers, &code, 4);
  put_text(answers, TF_Message(status), strlen(TF_Message(status)));
  put(answers, &peak, 8);
  put(answers, &num_results, 4);
  for (uint32_t i = 0; i < num_results; i++) put_tensor(answers, &signature->outputs[i], results[i]);
  for (int i = 0; i < MAX_TENSORS; i++) {
    if (given[i]) TF_DeleteTensor(given[i]);
    if (results[i]) TF_DeleteTensor(results[i]);
  }
  TF_DeleteStatus(status);
}

int main(int argc, char **argv) {
  if (argc != 4) die("usage", "saved_model_runner SAVED_MODEL REQUESTS ANSWERS");
  TF_Status *status = TF_NewStatus();
  TF_Graph *graph = TF_NewGraph();
  TF_SessionOptions *options = TF_NewSessionOptions();
  TF_Buffer *meta_graph = TF_NewBuffer();
  const char *tags[] = {"serve"};
  TF_Session *session =
      TF_LoadSessionFromSavedModel(options, NULL, argv[1], tags, 1, graph, meta_graph, status);
  if (TF_GetCode(status) != TF_OK) die(argv[1], TF_Message(status));

  Signature signatures[MAX_TENSORS];
  int num_signatures = 0;
  Bytes rest = {meta_graph->data, (const uint8_t *)meta_graph->data + meta_graph->length}, inside;
  uint64_t value;
  for (int field; (field = next_field(&rest, &value, &inside));) {
    if (field != 5) continue;
    char name[NAME_BYTES] = "";
    map_entry(inside, name);
    if (!strncmp(name, "__", 2)) continue; /* the loader's own, without a method */
    if (num_signatures == MAX_TENSORS) die(argv[1], "too many signatures");
    signatures[num_signatures++] = read_signature(graph, inside);
  }

  Bytes requests = read_file(argv[2]);
  FILE *answers = fopen(argv[3], "wb");
  if (!answers) die(argv[3], "cannot be opened");
  while (requests.at < requests.end) answer(&requests, answers, session, signatures, num_signatures);
  if (fclose(answers)) die(argv[3], "cannot be written");
  TF_CloseSession(session, status);
  TF_DeleteSession(session, status);
  return 0;
}
