#define _GNU_SOURCE /* sigfillset under -std=c11 */
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>

#include "problem.h"

enum { MAX_THREADS = 1024 };

struct queue {
    const struct problem *problem;
    work_function work;
    int64_t count;
    _Atomic int64_t next, thread;
};

static void *run(void *argument)
{
    struct queue *queue = argument;
    int64_t thread = atomic_fetch_add(&queue->thread, 1);
    char *scratch = queue->problem->scratch + thread * queue->problem->scratch_size;
    for (int64_t item; (item = atomic_fetch_add(&queue->next, 1)) < queue->count;)
        queue->work(queue->problem, item, scratch);
    return 0;
}

int64_t genosparse_problem_size(void);
int64_t genosparse_problem_size(void) { return sizeof(struct problem); }

void genosparse_parallel(const struct problem *problem, int64_t count, work_function work)
{
    struct queue queue = {.problem = problem, .work = work, .count = count};
    pthread_t threads[MAX_THREADS];
    int64_t wanted = problem->num_threads < count ? problem->num_threads : count;
    int started = 0;
    /* Threads live for one call: nothing to survive a fork, and tens of microseconds against the milliseconds of a
     * call. Signals are the interpreter's: its own threads take them. Where the system has no thread to give, those
     * that run do the work. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (started < wanted - 1 && started < MAX_THREADS && !pthread_create(&threads[started], 0, run, &queue))
        started++;
    pthread_sigmask(SIG_SETMASK, &before, 0);
    run(&queue);
    for (int i = 0; i < started; i++)
        pthread_join(threads[i], 0);
}
