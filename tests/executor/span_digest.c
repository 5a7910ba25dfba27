/* Runs a small span in every format on numbers that it makes itself, and prints a hash of what comes out, first
 * with one thread and only what its library's level has, then with two and all that the CPU has: the same on every
 * machine. Beside it, hashes of rows as they travel in each codec, and of what is read of them there. For
 * test_machines.py. */
#include "codecs.h"
#include "span.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LAYERS = 2, HIDDEN = 96, FFN = 160, HEADS = 6, KV_HEADS = 2, DIMS = 16, PAGES = 16, TILE = 16 };
enum { QKV = (HEADS + 2 * KV_HEADS) * DIMS, ATTENDED = HEADS * DIMS };

static uint64_t state;

static uint32_t next(void) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33);
}
static float number(float size) { return (float)((int32_t)(next() & 0xffff) - 32768) * (size / 32768); }

static void *bytes(int64_t count) {
    uint8_t *made = aligned_alloc(64, (size_t)(count + 63) / 64 * 64);
    for (int64_t i = 0; i < count; i++) made[i] = (uint8_t)next();
    return made;
}
static float *numbers(int64_t count, float middle, float size) {
    float *made = bytes(count * 4);
    for (int64_t i = 0; i < count; i++) made[i] = middle + number(size);
    return made;
}
static uint16_t *halves(int64_t count, int exponent) { /* of either sign, all of one magnitude */
    uint16_t *made = bytes(count * 2);
    for (int64_t i = 0; i < count; i++) made[i] = (uint16_t)((made[i] & 0x83ff) | exponent << 10);
    return made;
}

typedef struct {
    const char *name;
    int32_t format, group, minima, zero, halves;
} kind_t;

static const kind_t KINDS[] = {
    {"fp32", FP32, 0, 0, 0, 0},
    {"bf16", BF16, 0, 0, 0, 0},
    {"int8", INT8, 0, 0, 0, 0},
    {"int4", GROUPED4, 32, 0, 8, 1},
    {"4 bits and minima", GROUPED4, 32, 1, 0, 0},
    {"4 bits in small groups", GROUPED4, 16, 1, 0, 1},
    {"8 bits in small groups", GROUPED8, 16, 1, 0, 1},
    {"8 bits", GROUPED8, 32, 0, 0, 0},
    {"w8a8", W8A8, 0, 0, 0, 0},
};

static linear_t layer_of(const kind_t *kind, int rows, int cols) {
    linear_t layer = {.rows = rows, .cols = cols, .format = kind->format, .group = kind->group, .zero = kind->zero};
    const int64_t tiles = (rows + TILE - 1) / TILE, weights = tiles * TILE * cols;
    if (kind->format == FP32) layer.weights = numbers(weights, 0, 0.2f);
    if (kind->format == BF16) {
        uint16_t *made = bytes(weights * 2);
        const float *from = numbers(weights, 0, 0.2f);
        for (int64_t i = 0; i < weights; i++) {
            uint32_t bits;
            memcpy(&bits, from + i, 4);
            made[i] = (uint16_t)(bits >> 16);
        }
        layer.weights = made;
    }
    if (kind->format == INT8) layer.weights = bytes(weights), layer.scales = numbers(rows, 0.001f, 0.0005f);
    if (kind->format == W8A8) {
        const int64_t padded = (cols + 63) / 64 * 64;
        int8_t *made = bytes(tiles * TILE * padded); /* [tiles][padded / 4][TILE][4], zeros behind the last column */
        for (int64_t i = 0; i < tiles * TILE * padded; i++)
            if (i / (TILE * 4) % (padded / 4) * 4 + i % 4 >= cols) made[i] = 0;
        layer.weights = made;
        layer.scales = numbers(tiles * TILE, 0.001f, 0.0005f);
    }
    if (!kind->group) return layer;
    const int64_t groups = weights / kind->group;
    layer.weights = bytes(weights);
    layer.halves = kind->halves;
    layer.scales = kind->halves ? (void *)halves(groups, 4) : (void *)numbers(groups, 0, 0.01f);
    if (kind->minima) layer.minima = kind->halves ? (void *)halves(groups, 7) : (void *)numbers(groups, 0, 0.05f);
    return layer;
}

static const uint64_t NOTHING = 14695981039346656037u;

static uint64_t hash(uint64_t so_far, const void *values, int64_t size) { /* FNV-1a */
    const uint8_t *at = values;
    for (int64_t i = 0; i < size; i++) so_far = (so_far ^ at[i]) * 1099511628211u;
    return so_far;
}

static uint64_t digest(const kind_t *kind, int kv_format, int threads) {
    state = 1;
    layer_t layers[LAYERS];
    for (int l = 0; l < LAYERS; l++)
        layers[l] = (layer_t){.attention_norm = numbers(HIDDEN, 1, 0.1f),
                              .mlp_norm = numbers(HIDDEN, 1, 0.1f),
                              .query_norm = l ? numbers(DIMS, 1, 0.1f) : NULL,
                              .key_norm = l ? numbers(DIMS, 1, 0.1f) : NULL,
                              .qkv = layer_of(kind, QKV, HIDDEN),
                              .out = layer_of(kind, HIDDEN, ATTENDED),
                              .gate_up = layer_of(kind, 2 * FFN, HIDDEN),
                              .down = layer_of(kind, HIDDEN, FFN)};
    span_t span = {.hidden = HIDDEN, .ffn = FFN, .rotary = DIMS, .activation = SILU, .epsilon = 1e-5f, .residual = 1};
    span.frequencies[0] = numbers(DIMS / 2, 0.5f, 0.5f);
    span.rope_scale[0] = 1;
    span.n_layers = LAYERS;
    span.layers = layers;
    span.kv = (kv_t){HEADS, KV_HEADS, DIMS, kv_format, 0.2f, 0, NULL, 0};
    span.kv.page_bytes = LAYERS * kv_layer_bytes(&span.kv);
    span.kv.arena = bytes(PAGES * span.kv.page_bytes);
    memset(span.kv.arena, 0, (size_t)(PAGES * span.kv.page_bytes));
    const int32_t first[] = {3, 1, 7, 5, 0, 9}, second[] = {2, 4, 6, 8, 10, 11};
    /* A prompt; another beside a decode step; two decode steps; a slice of a prefill beside one. */
    const sequence_t steps[][2] = {
        {{0, 37, 0, 0, first}, {37, 0, 0, 0, second}},
        {{0, 1, 37, 0, first}, {1, 6, 0, 0, second}},
        {{0, 1, 38, 0, first}, {1, 1, 6, 0, second}},
        {{0, 1, 39, 0, first}, {1, 25, 7, 0, second}},
    };
    team_t *team = team_new(threads);
    if (team && threads == 1) team_limit(team, 0);
    uint64_t found = NOTHING;
    for (unsigned i = 0; i < sizeof steps / sizeof *steps; i++) {
        const int sessions = steps[i][1].rows ? 2 : 1, rows = steps[i][0].rows + steps[i][1].rows;
        float *hidden = numbers((int64_t)rows * HIDDEN, 0, 1);
        if (!team || span_step(team, &span, 0, LAYERS, steps[i], sessions, hidden)) exit(1);
        found = hash(found, hidden, (int64_t)rows * HIDDEN * 4);
    }
    team_free(team);
    return found; /* what was made is left to the end of the process */
}

static void print_codec(const char *name, int32_t codec) {
    enum { ROWS = 5, COLS = 1003 };
    state = 1;
    const int64_t size = ROWS * encoded_row_bytes(COLS, codec);
    float *rows = numbers(ROWS * COLS, 0, 1);
    for (int64_t i = 0; i < ROWS * COLS; i++) rows[i] *= next() & 31 ? 1 : number(1e3f);
    uint8_t *sent = bytes(size);
    if (!encode_rows(rows, ROWS, COLS, codec, sent) || !decode_rows(sent, ROWS, COLS, codec, rows)) exit(1);
    printf("sent in %s %016" PRIx64, name, hash(NOTHING, sent, size));
    printf(" %016" PRIx64 "\n", hash(NOTHING, rows, ROWS * COLS * 4));
}

int main(void) {
    for (int threads = 1; threads <= 2; threads++) {
        for (unsigned k = 0; k < sizeof KINDS / sizeof *KINDS; k++) {
            printf("%s %016" PRIx64, KINDS[k].name, digest(KINDS + k, BF16, threads));
            printf(" %016" PRIx64 "\n", digest(KINDS + k, INT8, threads));
        }
        print_codec("bfloat16", WIRE_BFLOAT16);
        print_codec("int8", WIRE_INT8);
        print_codec("int6", WIRE_INT6);
    }
    return 0;
}
