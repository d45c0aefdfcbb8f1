/* The MPI peers of `cargo x bench collective`: MPI_Allreduce of f32 sums, in place, timed as the other arms are.
 *
 * Usage: mpi_all_reduce BYTES,BYTES,...   under an MPI launcher. Rank 0 prints a line of JSON for each size:
 * {"bytes", "us", "turns", "wrong"}: the median time of one call, how many turns it is the median of, and how many
 * elements of its last result were wrong.
 *
 * The rules, the same in every arm: a turn is one call, or 64 where a buffer has at most 4 KiB; buffers are rewritten
 * before each call (inside the time where a turn has 64, before the barrier where it has one); a barrier, which does not
 * count, stands before each turn; two turns warm up.
 */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SMALL_BYTES = 4096, SMALL_CALLS = 64, WARM_UP = 2, FEWEST_TURNS = 7, MOST_TURNS = 300 };
static const long TOTAL_BYTES = 256L << 20;

static double now_us(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1e6 + time.tv_nsec * 1e-3;
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void rewrite(float *data, long len, int rank) {
    float pattern[8];
    for (int i = 0; i < 8; i++) pattern[i] = (float)((rank + 1) * (1 + i));
    for (long i = 0; i < len; i += 8) memcpy(data + i, pattern, (len - i < 8 ? len - i : 8) * sizeof(float));
}

static long count_wrong(const float *data, long len, int ranks) {
    long wrong = 0, sum = (long)ranks * (ranks + 1) / 2;
    for (long i = 0; i < len; i++) wrong += data[i] != (float)(sum * (1 + (i & 7)));
    return wrong;
}

static void all_reduce(float *data, long len) {
    MPI_Allreduce(MPI_IN_PLACE, data, (int)len, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
}

static double turn(float *data, long len, int rank, int calls) {
    if (calls == 1) rewrite(data, len, rank);
    MPI_Barrier(MPI_COMM_WORLD);
    double start = now_us();
    for (int call = 0; call < calls; call++) {
        if (calls > 1) rewrite(data, len, rank);
        all_reduce(data, len);
    }
    return (now_us() - start) / calls;
}

static void measure(long bytes, int rank, int ranks) {
    long len = bytes / (long)sizeof(float);
    int calls = bytes <= SMALL_BYTES ? SMALL_CALLS : 1;
    long turns = TOTAL_BYTES / (bytes * calls);
    turns = turns < FEWEST_TURNS ? FEWEST_TURNS : turns > MOST_TURNS ? MOST_TURNS : turns;
    float *data = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    double *times = malloc(turns * sizeof(double));
    if (!data || !times) MPI_Abort(MPI_COMM_WORLD, 1);
    for (int i = 0; i < WARM_UP; i++) turn(data, len, rank, calls);
    for (long i = 0; i < turns; i++) times[i] = turn(data, len, rank, calls);
    qsort(times, turns, sizeof(double), by_size);
    if (rank == 0) {
        printf("{\"bytes\": %ld, \"us\": %.3f, \"turns\": %ld, \"wrong\": %ld}\n", bytes, times[turns / 2], turns,
               count_wrong(data, len, ranks));
        fflush(stdout);
    }
    free(data);
    free(times);
}

int main(int count, char **arguments) {
    MPI_Init(&count, &arguments);
    int rank, ranks;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    if (count != 2) MPI_Abort(MPI_COMM_WORLD, 2);
    for (char *size = strtok(arguments[1], ","); size; size = strtok(NULL, ",")) measure(atol(size), rank, ranks);
    MPI_Finalize();
    return 0;
}
