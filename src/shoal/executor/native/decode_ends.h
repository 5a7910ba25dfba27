/* What a client computes of a decode step: the head, the likeliest token, and its embedding. */
#pragma once
#include "span.h"

typedef struct {
    linear_t head;
    const float *norm;       /* [head.cols] */
    const void *embedding;   /* [head.rows][head.cols], float32 or the bits of bfloat16 */
    int32_t bfloat16;        /* which of both */
    float epsilon;
    float logits, factor;    /* the logits are divided by one, the embedding is multiplied by the other */
    float *normed, *scores;  /* working memory: [rows][head.cols], [rows][head.rows] */
} ends_t;

/* Choose the token of the largest logit, of several the first, for each row of hidden[rows][head.cols], and put
 * its embedding in the row's place. Returns 1, or 0 when a logit is NaN or memory is short. */
int choose_likeliest(team_t *team, const ends_t *ends, float *hidden, int rows, int32_t *tokens);
