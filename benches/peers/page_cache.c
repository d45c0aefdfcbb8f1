/* The ceiling of `cargo x bench dataset`: the same samples, read in shuffled order from one file that lies in the page cache,
 * and summed. No loader can be faster that takes each byte out of the kernel once and looks at it once.
 *
 * Usage: page_cache FOLDER EPOCHS THREADS SEED. FOLDER has `all.bin` and `all.offsets` (u64, little-endian: where each sample
 * begins, and the end). Prints a line of JSON for each epoch: {"epoch", "seconds", "samples", "bytes", "sum"}; the sum is that of
 * 64-bit little-endian words, each sample's last one filled up with zeros, wrapping. Then it waits for the end of its stdin.
 *
 * Each thread reads with pread into a buffer of its own, which stays in its cache, and takes the next batch of the shuffled
 * order when it is done with one. The order is drawn before the clock starts.
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { BATCH = 32, MOST_THREADS = 64 };

static int data_file;
static uint64_t *offsets, *order, samples;
static size_t largest;
static atomic_uint_fast64_t next_position;

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec * 1e-9;
}

/* splitmix64: the state counts on, the output is a hash of it. */
static uint64_t draw(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static void shuffle(uint64_t *state) {
    for (uint64_t i = 0; i < samples; i++) order[i] = i;
    for (uint64_t left = samples; left > 1; left--) {
        uint64_t chosen = draw(state) % left, last = order[left - 1];
        order[left - 1] = order[chosen];
        order[chosen] = last;
    }
}

static uint64_t sum_of(const uint64_t *words, size_t count) {
    uint64_t sum = 0;
    for (size_t i = 0; i < count; i++) sum += words[i];
    return sum;
}

static uint64_t read_sample(uint64_t sample, uint64_t *buffer) {
    size_t length = offsets[sample + 1] - offsets[sample], words = (length + 7) / 8;
    if (!words) return 0;
    buffer[words - 1] = 0;
    for (size_t done = 0; done < length;) {
        ssize_t got = pread(data_file, (char *)buffer + done, length - done, (off_t)(offsets[sample] + done));
        if (got <= 0) fail("all.bin");
        done += (size_t)got;
    }
    return sum_of(buffer, words);
}

static void *work(void *result) {
    uint64_t sum = 0, *buffer = aligned_alloc(64, (largest / 64 + 2) * 64);
    if (!buffer) fail("a buffer");
    for (uint64_t start; (start = atomic_fetch_add(&next_position, BATCH)) < samples;)
        for (uint64_t at = start; at < samples && at < start + BATCH; at++) sum += read_sample(order[at], buffer);
    free(buffer);
    *(uint64_t *)result = sum;
    return NULL;
}

static uint64_t run_epoch(long threads) {
    pthread_t running[MOST_THREADS];
    uint64_t sums[MOST_THREADS], sum = 0;
    atomic_store(&next_position, 0);
    for (long i = 0; i < threads; i++)
        if (pthread_create(&running[i], NULL, work, &sums[i])) fail("a thread");
    for (long i = 0; i < threads; i++) {
        pthread_join(running[i], NULL);
        sum += sums[i];
    }
    return sum;
}

static void open_set(const char *folder) {
    char path[4096];
    struct stat facts;
    snprintf(path, sizeof path, "%s/all.offsets", folder);
    FILE *file = fopen(path, "rb");
    if (!file || fstat(fileno(file), &facts) || facts.st_size < 16) fail(path);
    samples = (uint64_t)facts.st_size / 8 - 1;
    offsets = malloc((size_t)facts.st_size);
    order = malloc(samples * sizeof *order);
    if (!offsets || !order || fread(offsets, 8, samples + 1, file) != samples + 1) fail(path);
    fclose(file);
    for (uint64_t i = 0; i < samples; i++) {
        size_t length = offsets[i + 1] - offsets[i];
        if (length > largest) largest = length;
    }
    snprintf(path, sizeof path, "%s/all.bin", folder);
    if ((data_file = open(path, O_RDONLY)) < 0) fail(path);
}

int main(int count, char **words) {
    if (count != 5) {
        fprintf(stderr, "usage: page_cache FOLDER EPOCHS THREADS SEED\n");
        return 2;
    }
    long epochs = atol(words[2]), threads = atol(words[3]);
    uint64_t state = strtoull(words[4], NULL, 10);
    if (epochs < 1 || threads < 1 || threads > MOST_THREADS) {
        fprintf(stderr, "EPOCHS and THREADS start at 1, THREADS ends at %d\n", MOST_THREADS);
        return 2;
    }
    open_set(words[1]);
    for (long epoch = 1; epoch <= epochs; epoch++) {
        shuffle(&state);
        double start = now();
        uint64_t sum = run_epoch(threads);
        double seconds = now() - start;
        printf("{\"epoch\": %ld, \"seconds\": %.9f, \"samples\": %lu, \"bytes\": %lu, \"sum\": %lu}\n", epoch, seconds,
               samples, offsets[samples] - offsets[0], sum);
        fflush(stdout);
    }
    while (getchar() != EOF) {
    }
    return 0;
}
