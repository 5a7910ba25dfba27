/* Decode steps from the bytes that came to the bytes that go on, without Python between: at a hop, whose blocks
 * they go through, and at a client, where they come back and the token is chosen that goes round next.
 *
 * What may be done here is less than what a hop does: one token of a session that goes on where its cache ends,
 * sent in the one form in which we write such a step. All else is left alone, and Python, whose rules these are
 * (wire/framing.py, wire/messages.py, wire/session.py), does it from the beginning. */
#pragma once
#include "decode_ends.h"
#include "span.h"

#define MOST_STEPS 16 /* of one forward: more rows may be given to another library */

/* A session whose decode steps may run here. */
typedef struct {
    uint8_t session[16];
    int64_t channel;      /* over which its steps come */
    int64_t length;       /* tokens cached: where its next step begins */
    int64_t awaited;      /* the number that its next step has; 0: any */
    int64_t limit;        /* tokens to which it may grow */
    const int32_t *pages;
    double left, away;    /* when its last step was done, and how long it is usually away: seconds; 0: unknown */
    uint32_t number;      /* of the message that goes on */
    int32_t ready;        /* whether its next step may run here */
    int32_t from, to;     /* blocks, counted from the span's first */
    int32_t hop;          /* its place in the route */
    int32_t codec;        /* in which its steps come */
    int32_t adapter;      /* as a sequence's */
} seat_t;

/* A step as it came; places are counted from the first byte of its message. */
typedef struct {
    const uint8_t *message, *payload;
    int64_t bytes;        /* of the message, without the header of its fragment */
    int64_t header;       /* bytes of the header; it begins at 8 */
    int64_t tensors;      /* where what comes behind the position begins */
    int64_t times;        /* where the list of times begins */
    int64_t entries_end;  /* and where it ends */
    int64_t n_times;
    int64_t number, position, width, payload_bytes;
    int32_t codec;
} step_in_t;

/* A step that has run. */
typedef struct {
    int32_t seat;
    int32_t codec;
    int32_t header_at, header;  /* in the bytes that came */
    int32_t out_at, out;        /* in `out`: the whole message, as a fragment */
    int32_t payload;            /* bytes of the hidden states, at its end */
    int32_t token;              /* that was chosen; at a client */
} ran_t;

typedef struct {
    team_t *team;
    const span_t *span;         /* at a hop, */
    const ends_t *ends;         /* or at a client; the other is NULL */
    seat_t *seats;
    int64_t n_seats;
    int64_t width;              /* elements of a token's hidden states */
    float *hidden;              /* [MOST_STEPS][width] */
    uint8_t *out;
    int64_t out_bytes;          /* room there */
    int64_t most_payload;       /* bytes of hidden states that one step may have */
    double wait_s;              /* for so long, others that are nearly here are worth waiting for */
    double asked, began, ended; /* when the bytes came, and the forward: seconds of the monotonic clock */
    int64_t compute_us, waiting_us; /* what the steps say that they took here */
    ran_t ran[MOST_STEPS];
} decode_hop_t;

/* Run the steps that `data` holds, if it holds nothing else and all of them may run here.
 * Returns how many ran; 0 if none did, and then nothing has changed but what KV holds beyond the lengths. */
int decode_steps(decode_hop_t *hop, int64_t channel, const uint8_t *data, int64_t size);
/* Read one whole message, without its fragment's header. Returns 1, or 0 if it is no decode step in our form. */
int read_decode_step(const uint8_t *message, int64_t size, step_in_t *step);
/* The same step as a hop sends it on, without its hidden states; returns the bytes written, fewer than
 * step->header + 40. */
int64_t write_decode_step(const step_in_t *step, uint32_t number, int32_t hop, int64_t compute_us,
                          int64_t waiting_us, uint8_t *to);
/* The step that follows a result, as a client sends it. Returns as above. */
int64_t write_next_step(const step_in_t *result, uint32_t number, uint8_t *to);
