#include "decode_ends.h"
#include "simd.h"

/* The first of the largest logits; -1 where one is NaN. */
static int32_t likeliest(float *logits, int64_t n, float divisor) {
    if (divisor != 1)
        for (int64_t i = 0; i < n; i++) logits[i] /= divisor;
    vf most = splat(logits[0]);
    vi numbers = most == most;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        const vf found = load(logits + i);
        most = larger(found, most);
        numbers &= found == found;
    }
    float largest = logits[0];
    for (; i < n; i++) {
        numbers[0] &= logits[i] == logits[i] ? -1 : 0;
        largest = logits[i] > largest ? logits[i] : largest;
    }
    for (int lane = 0; lane < LANES; lane++) {
        if (!numbers[lane]) return -1;
        largest = most[lane] > largest ? most[lane] : largest;
    }
    for (i = 0; logits[i] != largest; i++) {}
    return (int32_t)i;
}

static void embed(const ends_t *ends, int32_t token, float *row) {
    const int64_t width = ends->head.cols, at = token * width;
    if (ends->bfloat16) {
        const uint16_t *bits = (const uint16_t *)ends->embedding + at;
        for (int64_t i = 0; i < width; i++) row[i] = from_bf16(bits[i]);
    } else {
        memcpy(row, (const float *)ends->embedding + at, (size_t)width * sizeof *row);
    }
    if (ends->factor != 1)
        for (int64_t i = 0; i < width; i++) row[i] *= ends->factor;
}

int choose_likeliest(team_t *team, const ends_t *ends, float *hidden, int rows, int32_t *tokens) {
    const int64_t width = ends->head.cols, vocab = ends->head.rows;
    rms_norm(hidden, rows, width, ends->norm, ends->epsilon, ends->normed);
    if (apply_linear(team, &ends->head, ends->normed, rows, ends->scores)) return 0;
    for (int i = 0; i < rows; i++) {
        tokens[i] = likeliest(ends->scores + i * vocab, vocab, ends->logits);
        if (tokens[i] < 0) return 0;
    }
    for (int i = 0; i < rows; i++) embed(ends, tokens[i], hidden + i * width);
    return 1;
}
