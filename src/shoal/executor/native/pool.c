/* Chunks are taken one by one, so a thread that the system has set aside delays at most its own chunk, and a
 * thread that sleeps delays nothing. Between two loops of a step the threads spin; between steps they sleep:
 * a node often shares its cores with other nodes. */
#include "pool.h"
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

#define SPINS 2000   /* looks before a waiting thread offers its core to others */
#define YIELDS 200   /* offers before a thread that found nothing sleeps */
#define LOOPS 4      /* descriptors kept: a late thread may still read the one before */

typedef struct {
    work_fn work;
    void *context;
    uint32_t chunks;
} loop_t;

struct pool {
    int threads;
    _Atomic uint64_t next;    /* number of the loop << 32 | next chunk of it */
    _Atomic uint32_t done;    /* chunks of the loop that are finished */
    _Atomic int awake;        /* a step is under way */
    _Atomic int leaving;
    loop_t loops[LOOPS];
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    pthread_t *ids;
};

typedef struct {
    pool_t *pool;
    int thread;
} worker_t;

static inline void pause_cpu(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Take chunks of the current loop until none is left. Returns whether there was any. */
static int take_chunks(pool_t *pool, int thread) {
    int any = 0;
    uint64_t seen = atomic_load_explicit(&pool->next, memory_order_acquire);
    for (;;) {
        loop_t loop = pool->loops[(seen >> 32) % LOOPS];
        if ((uint32_t)seen >= loop.chunks) return any;
        /* Only a loop that has not ended can be taken from, so what was read of it is still true. */
        if (!atomic_compare_exchange_weak_explicit(&pool->next, &seen, seen + 1, memory_order_acq_rel,
                                                   memory_order_acquire))
            continue;
        loop.work(loop.context, (int)(uint32_t)seen, thread);
        atomic_fetch_add_explicit(&pool->done, 1, memory_order_release);
        any = 1;
        seen = atomic_load_explicit(&pool->next, memory_order_acquire);
    }
}

static void *serve(void *argument) {
    worker_t worker = *(worker_t *)argument;
    pool_t *pool = worker.pool;
    free(argument);
    int spins = 0, yields = 0;
    while (!atomic_load_explicit(&pool->leaving, memory_order_acquire)) {
        if (take_chunks(pool, worker.thread)) {
            spins = yields = 0;
        } else if (spins < SPINS) {
            spins++;
            pause_cpu();
        } else if (yields < YIELDS || atomic_load(&pool->awake)) {
            yields++;
            sched_yield();
        } else {
            pthread_mutex_lock(&pool->mutex);
            while (!atomic_load(&pool->awake) && !atomic_load(&pool->leaving))
                pthread_cond_wait(&pool->wake, &pool->mutex);
            pthread_mutex_unlock(&pool->mutex);
            spins = yields = 0;
        }
    }
    return 0;
}

pool_t *pool_new(int threads) {
    pool_t *pool = calloc(1, sizeof *pool);
    if (!pool) return 0;
    pool->threads = 1;
    pool->ids = calloc((size_t)threads, sizeof *pool->ids);
    pthread_mutex_init(&pool->mutex, 0);
    pthread_cond_init(&pool->wake, 0);
    for (int i = 1; pool->ids && i < threads; i++) {
        worker_t *worker = malloc(sizeof *worker);
        if (!worker) break;
        *worker = (worker_t){pool, i};
        if (pthread_create(&pool->ids[i], 0, serve, worker)) {
            free(worker);
            break; /* fewer threads are slower, not wrong */
        }
        pool->threads++;
    }
    return pool;
}

void pool_free(pool_t *pool) {
    if (!pool) return;
    pthread_mutex_lock(&pool->mutex);
    atomic_store(&pool->leaving, 1);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->mutex);
    for (int i = 1; i < pool->threads; i++) pthread_join(pool->ids[i], 0);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->mutex);
    free(pool->ids);
    free(pool);
}

int pool_threads(const pool_t *pool) { return pool->threads; }

void pool_begin(pool_t *pool) {
    if (pool->threads == 1) return;
    pthread_mutex_lock(&pool->mutex);
    atomic_store(&pool->awake, 1);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->mutex);
}

void pool_end(pool_t *pool) { atomic_store(&pool->awake, 0); }

void pool_run(pool_t *pool, work_fn work, void *context, int chunks) {
    if (chunks <= 0) return;
    if (pool->threads == 1 || chunks == 1) {
        for (int chunk = 0; chunk < chunks; chunk++) work(context, chunk, 0);
        return;
    }
    uint64_t number = (atomic_load_explicit(&pool->next, memory_order_relaxed) >> 32) + 1;
    pool->loops[number % LOOPS] = (loop_t){work, context, (uint32_t)chunks};
    atomic_store_explicit(&pool->done, 0, memory_order_relaxed);
    atomic_store_explicit(&pool->next, number << 32, memory_order_release);
    take_chunks(pool, 0);
    for (int spins = 0; atomic_load_explicit(&pool->done, memory_order_acquire) < (uint32_t)chunks; spins++) {
        if (spins < SPINS) pause_cpu();
        else sched_yield();
    }
}
