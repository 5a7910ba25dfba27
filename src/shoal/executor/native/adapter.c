#include "adapter.h"
#include "simd.h"

static float dot(const float *a, const float *b, int64_t n) {
    v16 sums = zero16();
    int64_t k = 0;
    for (; k + 16 <= n; k += 16) sums = fma16(load16(a + k), load16(b + k), sums);
    float sum = sum16(sums);
    for (; k < n; k++) sum += a[k] * b[k];
    return sum;
}

static void adapt_part(const low_rank_t *part, const float *x, float *out, float factor) {
    float inner[MOST_RANK], added[16];
    for (int r = 0; r < part->rank; r++) inner[r] = dot(part->down + (int64_t)r * part->cols, x, part->cols) * factor;
    for (int64_t at = 0; at < part->rows; at += 16) {
        v16 sums = zero16();
        for (int r = 0; r < part->rank; r++)
            sums = fma16(splat16(inner[r]), load16(part->up + r * part->stride + at), sums);
        if (at + 16 <= part->rows) {
            store16(out + at, plus16(load16(out + at), sums));
            continue;
        }
        store16(added, sums);
        for (int i = 0; at + i < part->rows; i++) out[at + i] += added[i];
    }
}

void adapt(const adapted_t *adapted, int which, const float *x, float *out, float factor) {
    for (int i = 0; i < adapted->counts[which]; i++) {
        const low_rank_t *part = &adapted->parts[which][i];
        adapt_part(part, x, out + part->first, factor);
    }
}
