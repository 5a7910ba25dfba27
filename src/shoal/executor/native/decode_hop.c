#include "decode_hop.h"
#include "codecs.h"
#include <string.h>
#include <time.h>

/* As wire/framing.py, wire/messages.py and wire/payload.py have them. */
#define FRAGMENT 65510
#define FRAGMENT_HEADER 9
#define LENGTHS 8
#define SESSION_END 24            /* of a step's header, with the session in it */
#define MOST_TIMES 14             /* with one more, their list still has a length of one byte */
#define MAX_HOPS 256
#define MAX_MICROSECONDS (1ll << 42)
#define LATEST_S 0.002            /* as executor/schedule.py: beyond twice the usual, a session is not awaited */

typedef struct {
    const uint8_t *at, *end;
} reader_t;

static uint32_t big32(const uint8_t *from) {
    return (uint32_t)from[0] << 24 | (uint32_t)from[1] << 16 | (uint32_t)from[2] << 8 | from[3];
}

static void put_big32(uint8_t *to, uint32_t value) {
    for (int i = 0; i < 4; i++) to[i] = (uint8_t)(value >> (24 - 8 * i));
}

static int take(reader_t *reader, const void *expected, int64_t n) {
    if (reader->end - reader->at < n || memcmp(reader->at, expected, (size_t)n)) return 0;
    reader->at += n;
    return 1;
}

/* A whole number, 0 or more, in its shortest form: in another, what we send on would not be what was sent. */
static int take_number(reader_t *reader, int64_t *value) {
    if (reader->at == reader->end) return 0;
    const uint8_t kind = *reader->at++;
    if (kind < 0x80) {
        *value = kind;
        return 1;
    }
    if (kind < 0xcc || kind > 0xcf) return 0;
    const int bytes = 1 << (kind - 0xcc);
    if (reader->end - reader->at < bytes) return 0;
    uint64_t found = 0;
    for (int i = 0; i < bytes; i++) found = found << 8 | *reader->at++;
    *value = (int64_t)found;
    return found < 1ull << 63 && found >= (bytes == 1 ? 0x80 : 1ull << (4 * bytes));
}

static uint8_t *put_number(uint8_t *to, uint64_t value) {
    if (value < 0x80) {
        *to++ = (uint8_t)value;
        return to;
    }
    const int size = value < 1 << 8 ? 0 : value < 1 << 16 ? 1 : value < 1ull << 32 ? 2 : 3;
    *to++ = (uint8_t)(0xcc + size);
    for (int shift = 8 * (1 << size) - 8; shift >= 0; shift -= 8) *to++ = (uint8_t)(value >> shift);
    return to;
}

static int take_codec(reader_t *reader, int32_t *codec) {
    *codec = take(reader, "\xa7" "float32", 8) ? WIRE_FLOAT32
           : take(reader, "\xa8" "bfloat16", 9) ? WIRE_BFLOAT16
           : take(reader, "\xa4" "int8", 5) ? WIRE_INT8
           : take(reader, "\xa4" "int6", 5) ? WIRE_INT6 : -1;
    return *codec >= 0;
}

static int take_times(reader_t *reader, int64_t *count) {
    if (reader->at == reader->end || *reader->at < 0x90 || *reader->at > 0x90 + MOST_TIMES) return 0;
    *count = *reader->at++ - 0x90;
    for (int64_t i = 0; i < *count; i++) {
        int64_t hop, compute, waiting;
        if (!take(reader, "\x93", 1) || !take_number(reader, &hop) || !take_number(reader, &compute) ||
            !take_number(reader, &waiting) || hop > MAX_HOPS || compute > MAX_MICROSECONDS ||
            waiting > MAX_MICROSECONDS)
            return 0;
    }
    return 1;
}

int read_decode_step(const uint8_t *message, int64_t size, step_in_t *step) {
    if (size < LENGTHS) return 0;
    step->message = message;
    step->bytes = size;
    step->header = big32(message);
    step->payload_bytes = big32(message + 4);
    if (LENGTHS + step->header + step->payload_bytes != size) return 0;
    reader_t reader = {message + LENGTHS, message + LENGTHS + step->header};
    step->payload = reader.end;
    if (!take(&reader, "\x9c\xa4" "step" "\xc4\x10", 8) || reader.end - reader.at < 16) return 0;
    reader.at += 16; /* the session */
    if (!take_number(&reader, &step->number) || !take_number(&reader, &step->position)) return 0;
    step->tensors = reader.at - message;
    /* one token, wanted back; one tensor */
    if (!take(&reader, "\x01\x01\x91\x93\xa6" "hidden", 11) || !take_codec(&reader, &step->codec)) return 0;
    if (!take(&reader, "\x92\x01", 2) || !take_number(&reader, &step->width)) return 0;
    step->times = reader.at - message;
    if (!take_times(&reader, &step->n_times)) return 0;
    step->entries_end = reader.at - message;
    /* to the end of the ring; a sequence that ends with it; no tokens that see those behind them; no pictures */
    if (!take(&reader, "\xc0\x00\x90\x90", 4) || reader.at != reader.end) return 0;
    return step->width > 0 && step->width <= FRAGMENT &&
           encoded_row_bytes(step->width, step->codec) == step->payload_bytes;
}

/* The headers around what lies between `message` and `at`. Returns how many bytes there are of both. */
static int64_t close_message(const step_in_t *step, uint32_t number, uint8_t *message, uint8_t *at) {
    uint8_t *to = message - FRAGMENT_HEADER;
    *at++ = 0xc0; /* to the end of the ring */
    *at++ = 0x00; /* a sequence that ends with it */
    *at++ = 0x90; /* no tokens that see those behind them */
    *at++ = 0x90; /* no pictures before its end */
    put_big32(message, (uint32_t)(at - message - LENGTHS));
    put_big32(message + 4, (uint32_t)step->payload_bytes);
    put_big32(to, number);
    put_big32(to + 4, (uint32_t)(at - message + step->payload_bytes));
    to[8] = 0;
    return at - to;
}

int64_t write_decode_step(const step_in_t *step, uint32_t number, int32_t hop, int64_t compute_us,
                          int64_t waiting_us, uint8_t *to) {
    uint8_t *message = to + FRAGMENT_HEADER, *at = message + LENGTHS;
    const int64_t before = step->times - LENGTHS, entries = step->entries_end - step->times - 1;
    memcpy(at, step->message + LENGTHS, (size_t)before);
    at += before;
    *at++ = (uint8_t)(0x90 + step->n_times + 1);
    memcpy(at, step->message + step->times + 1, (size_t)entries);
    at += entries;
    *at++ = 0x93;
    at = put_number(at, (uint64_t)hop);
    at = put_number(at, (uint64_t)compute_us);
    at = put_number(at, (uint64_t)waiting_us);
    return close_message(step, number, message, at);
}

int64_t write_next_step(const step_in_t *result, uint32_t number, uint8_t *to) {
    uint8_t *message = to + FRAGMENT_HEADER, *at = message + LENGTHS;
    const int64_t same = result->times - result->tensors;
    memcpy(at, result->message + LENGTHS, SESSION_END);
    at = put_number(at + SESSION_END, (uint64_t)result->number + 1);
    at = put_number(at, (uint64_t)result->position + 1);
    memcpy(at, result->message + result->tensors, (size_t)same);
    at += same;
    *at++ = 0x90; /* no times yet */
    return close_message(result, number, message, at);
}

/* The clock of Python's perf_counter, which on macOS stands still while the machine sleeps. */
#ifdef __APPLE__
#define PERF_CLOCK CLOCK_UPTIME_RAW
#else
#define PERF_CLOCK CLOCK_MONOTONIC
#endif

static double seconds(void) {
    struct timespec now;
    clock_gettime(PERF_CLOCK, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static int find_seat(const decode_hop_t *hop, const uint8_t *session) {
    for (int seat = 0; seat < hop->n_seats; seat++)
        if (!memcmp(hop->seats[seat].session, session, 16)) return seat;
    return -1;
}

/* Whether a session may run its step now, beside those that are taken already. */
static int may_run(const decode_hop_t *hop, int64_t channel, const step_in_t *step, int found, int count) {
    if (found < 0 || count == MOST_STEPS) return 0;
    const seat_t *seat = &hop->seats[found];
    for (int i = 0; i < count; i++)
        if (hop->ran[i].seat == found) return 0;
    const seat_t *first = count ? &hop->seats[hop->ran[0].seat] : seat;
    return seat->ready && seat->channel == channel && step->width == hop->width &&
           (!seat->awaited || step->number == seat->awaited) && step->position == seat->length && seat->length < seat->limit && step->codec == seat->codec &&
           step->payload_bytes <= hop->most_payload && seat->from == first->from && seat->to == first->to;
}

/* The steps in `data`; their hidden states are decoded. Returns their number, 0 if something else is there. */
static int read_steps(decode_hop_t *hop, int64_t channel, const uint8_t *data, int64_t size, step_in_t *steps) {
    int count = 0;
    for (int64_t at = 0; at < size; count++) {
        if (size - at < FRAGMENT_HEADER) return 0;
        const int64_t bytes = big32(data + at + 4);
        if (bytes > FRAGMENT || data[at + 8] || size - at - FRAGMENT_HEADER < bytes) return 0;
        const uint8_t *message = data + at + FRAGMENT_HEADER;
        if (count == MOST_STEPS || !read_decode_step(message, bytes, &steps[count])) return 0;
        step_in_t *step = &steps[count];
        const int seat = find_seat(hop, message + LENGTHS + 8);
        if (!may_run(hop, channel, step, seat, count)) return 0;
        const int64_t width = hop->width;
        if (!decode_rows(step->payload, 1, width, step->codec, hop->hidden + count * width)) return 0;
        hop->ran[count] = (ran_t){.seat = seat, .codec = step->codec, .header_at = (int32_t)(message + LENGTHS - data),
                                  .header = (int32_t)step->header, .payload = (int32_t)step->payload_bytes};
        at += FRAGMENT_HEADER + bytes;
    }
    return count;
}

/* Whether a session that is not here will be soon: then a forward of its own would cost the weights again. */
static int others_due(const decode_hop_t *hop, int count) {
    const double until = hop->asked + hop->wait_s;
    for (int other = 0; other < hop->n_seats; other++) {
        const seat_t *seat = &hop->seats[other];
        int here = seat->away == 0 || seat->left + seat->away > until ||
                   hop->asked >= seat->left + 2 * seat->away + LATEST_S;
        for (int i = 0; i < count && !here; i++) here = hop->ran[i].seat == other;
        if (!here) return 1;
    }
    return 0;
}

static int64_t microseconds(double s) { return s > 0 ? (int64_t)(s * 1e6 + 0.5) : 0; }

/* What goes on of each step. Returns 0 where a number is not finite, or there is no room. */
static int write_steps(decode_hop_t *hop, const step_in_t *steps, int count) {
    const int64_t width = hop->width;
    hop->compute_us = microseconds(hop->ended - hop->began);
    hop->waiting_us = microseconds(seconds() - hop->asked - (hop->ended - hop->began));
    int64_t at = 0;
    for (int i = 0; i < count; i++) {
        ran_t *ran = &hop->ran[i];
        const seat_t *seat = &hop->seats[ran->seat];
        if (at + steps[i].bytes + 64 > hop->out_bytes) return 0;
        ran->out_at = (int32_t)at;
        at += hop->ends ? write_next_step(&steps[i], seat->number, hop->out + at)
                        : write_decode_step(&steps[i], seat->number, seat->hop, hop->compute_us, hop->waiting_us,
                                            hop->out + at);
        if (!encode_rows(hop->hidden + i * width, 1, width, ran->codec, hop->out + at)) return 0;
        at += ran->payload;
        ran->out = (int32_t)(at - ran->out_at);
        if (ran->out - FRAGMENT_HEADER > FRAGMENT) return 0;
    }
    return count;
}

static int through_span(decode_hop_t *hop, int count) {
    sequence_t sequences[MOST_STEPS];
    for (int i = 0; i < count; i++) {
        const seat_t *seat = &hop->seats[hop->ran[i].seat];
        sequences[i] = (sequence_t){i, 1, (int32_t)seat->length, seat->adapter, seat->pages, NULL, NULL};
    }
    const seat_t *first = &hop->seats[hop->ran[0].seat];
    return !span_step(hop->team, hop->span, first->from, first->to, sequences, count, hop->hidden);
}

static int through_ends(decode_hop_t *hop, int count) {
    int32_t tokens[MOST_STEPS];
    if (!choose_likeliest(hop->team, hop->ends, hop->hidden, count, tokens)) return 0;
    for (int i = 0; i < count; i++) hop->ran[i].token = tokens[i];
    return 1;
}

int decode_steps(decode_hop_t *hop, int64_t channel, const uint8_t *data, int64_t size) {
    step_in_t steps[MOST_STEPS];
    hop->asked = seconds();
    const int count = read_steps(hop, channel, data, size, steps);
    if (!count || others_due(hop, count)) return 0;
    hop->began = seconds();
    if (!(hop->ends ? through_ends(hop, count) : through_span(hop, count))) return 0;
    hop->ended = seconds();
    return write_steps(hop, steps, count);
}
