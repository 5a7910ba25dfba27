/* A stand-in for libllama: it computes nothing, and checks what it is asked for as the real one would.

   Built with -DOTHER_ORDER its records have another layout, with -DNO_RPC it has no RPC. */
#include <arpa/inet.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define VOCAB 120
#define MOST 64

struct model_params { void **devices; void *over; int32_t layers; int32_t split[3]; void *more[4]; bool flags[6]; };
struct context_params { uint32_t n_ctx, n_batch, n_ubatch, n_seq_max, more[3]; int32_t threads[2]; float rope[8]; };
struct quantize_params { int32_t threads, type, out, embd; bool allow, output, copy, pure; void *more[5]; };
struct batch { int32_t n; int32_t *token; float *embd; int32_t *pos, *n_seq; int32_t **seq; int8_t *logits; };
struct context { uint32_t n_ctx, n_seq_max; int32_t threads; int32_t length[MOST]; int8_t asked[4096]; };

static char folder[512];
static void (*hear)(int, const char *, void *);
static int devices[3] = {0, 1, 1}; /* the CPU, and what RPC servers offer */
static float logits[VOCAB];

static void fail(const char *why) { if (hear) hear(4, why, 0); }
void llama_log_set(void (*to)(int, const char *, void *), void *data) { hear = to; (void)data; }
void ggml_backend_load_all_from_path(const char *path) { snprintf(folder, sizeof folder, "%s", path); }
void llama_backend_init(void) {}
const char *llama_print_system_info(void) { return "CPU : FAKE = 1 | "; }

struct model_params llama_model_default_params(void) { return (struct model_params){.layers = -1}; }
struct context_params llama_context_default_params(void) {
#ifdef OTHER_ORDER
    return (struct context_params){1, 512, 2048, 512};
#else
    return (struct context_params){512, 2048, 512, 1};
#endif
}
struct quantize_params llama_model_quantize_default_params(void) {
    return (struct quantize_params){.type = 7, .output = true};
}
uint32_t llama_model_quantize(const char *from, const char *to, const struct quantize_params *asked) {
    FILE *file = fopen(to, "w");
    if (!file || access(from, R_OK)) return 1;
    fprintf(file, "type %d pure %d threads %d", asked->type, asked->pure, asked->threads);
    return fclose(file) != 0;
}

void *llama_model_load_from_file(const char *path, struct model_params params) {
    if (strstr(path, "crash")) abort();
    if (access(path, R_OK)) { fail("no such file\n"); return 0; }
    int *count = malloc(sizeof *count);
    for (*count = 0; params.devices[*count]; ++*count) {}
    if ((params.layers == 0) != (*count == 0)) return 0;
    return count;
}
int32_t llama_model_desc(void *model, char *text, size_t size) {
    return snprintf(text, size, "fake on %d devices", *(int *)model);
}
void *llama_model_get_vocab(void *model) { return model; }
int32_t llama_vocab_n_tokens(void *vocab) { (void)vocab; return VOCAB; }

struct context *llama_init_from_model(void *model, struct context_params params) {
    struct context *made = calloc(1, sizeof *made);
    (void)model;
    made->n_ctx = params.n_ctx;
    made->n_seq_max = params.n_seq_max;
    return made;
}
void llama_set_n_threads(struct context *c, int32_t one, int32_t many) { c->threads = one == many ? one : 0; }
uint32_t llama_n_ctx(struct context *c) { return c->n_ctx; }
uint32_t llama_n_seq_max(struct context *c) { return c->n_seq_max; }
struct context *llama_get_memory(struct context *c) { return c; }
void llama_memory_clear(struct context *c, bool data) { (void)data; memset(c->length, 0, sizeof c->length); }
bool llama_memory_seq_rm(struct context *c, int32_t seq, int32_t from, int32_t to) {
    char stop[600];
    snprintf(stop, sizeof stop, "%s/stop", folder);
    if (to != -1 || from > c->length[seq] || !access(stop, F_OK)) return false;
    c->length[seq] = from;
    return true;
}
struct batch llama_batch_init(int32_t n, int32_t embd, int32_t most) {
    struct batch made = {0};
    (void)embd;
    made.token = calloc(n, sizeof *made.token);
    made.pos = calloc(n, sizeof *made.pos);
    made.n_seq = calloc(n, sizeof *made.n_seq);
    made.logits = calloc(n, sizeof *made.logits);
    made.seq = calloc(n, sizeof *made.seq);
    for (int i = 0; i < n; ++i) made.seq[i] = calloc(most, sizeof **made.seq);
    return made;
}
int32_t llama_decode(struct context *c, struct batch b) {
    if (c->threads < 1 || b.n < 1 || b.n > 2048) return -1;
    for (int i = 0; i < b.n; ++i) {
        int seq = b.seq[i][0];
        if (b.n_seq[i] != 1 || seq < 0 || seq >= (int)c->n_seq_max || b.token[i] < 0 || b.token[i] >= VOCAB)
            return -2;
        if (b.pos[i] != c->length[seq]++ || c->length[seq] * c->n_seq_max > c->n_ctx) {
            fail("positions are not consecutive, or there is no room\n");
            return 1;
        }
        c->asked[i] = b.logits[i];
    }
    return 0;
}
float *llama_get_logits_ith(struct context *c, int32_t i) { return c->asked[i] ? logits : 0; }

size_t ggml_backend_dev_count(void) { return 1; }
void *ggml_backend_dev_get(size_t i) { return &devices[i]; }
int ggml_backend_dev_type(void *device) { return *(int *)device; }
const char *ggml_backend_dev_description(void *device) { (void)device; return "fake"; }

static struct sockaddr_in address(const char *text) {
    struct sockaddr_in made = {.sin_family = AF_INET};
    made.sin_port = htons(atoi(strchr(text, ':') + 1));
    made.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return made;
}
void *rpc_add(const char *text) {
    struct sockaddr_in to = address(text);
    int opened = socket(AF_INET, SOCK_STREAM, 0);
    int refused = connect(opened, (struct sockaddr *)&to, sizeof to);
    close(opened);
    if (refused) { fail("nobody listens\n"); return 0; }
    return &devices[1];
}
void rpc_start(const char *text, const char *cache, size_t threads, size_t count, void **with) {
    struct sockaddr_in at = address(text);
    int opened = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    if (cache || threads != 1 || count != 1 || with[0] != &devices[0]) exit(3);
    setsockopt(opened, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(opened, (struct sockaddr *)&at, sizeof at) || listen(opened, 9)) exit(4);
    for (;;) close(accept(opened, 0, 0));
}
void *ggml_backend_reg_by_name(const char *name) {
#ifdef NO_RPC
    (void)name;
    return 0;
#else
    return strcmp(name, "RPC") ? 0 : devices;
#endif
}
void *ggml_backend_reg_get_proc_address(void *reg, const char *name) {
    (void)reg;
    return strstr(name, "add_server") ? (void *)rpc_add : (void *)rpc_start;
}
size_t ggml_backend_reg_dev_count(void *reg) { (void)reg; return 1; }
void *ggml_backend_reg_dev_get(void *reg, size_t i) { (void)reg; return &devices[1 + i]; }
void ggml_backend_register(void *reg) { (void)reg; }
