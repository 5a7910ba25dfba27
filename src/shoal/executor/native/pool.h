/* A few threads that share out the chunks of one loop at a time. */
#pragma once
#include <stdint.h>

typedef struct pool pool_t;
typedef void (*work_fn)(void *context, int chunk, int thread);

pool_t *pool_new(int threads);
void pool_free(pool_t *pool);
int pool_threads(const pool_t *pool);
/* Wake the threads for what is coming; let them sleep again. Calls of pool_run lie between the two. */
void pool_begin(pool_t *pool);
void pool_end(pool_t *pool);
/* Call work(context, chunk, thread) for every chunk in [0, chunks) and wait for all. The caller is thread 0. */
void pool_run(pool_t *pool, work_fn work, void *context, int chunks);
