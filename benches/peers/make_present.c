// make_present BYTES: uses so much memory once, in pieces of 2 MiB where the system has them, and gives it back.
//
// The host of a virtual machine takes back what has been free for long, in such pieces; who touches one first then waits
// milliseconds for it. What is used here is there for whoever comes next.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

int main(int count, char **arguments) {
    size_t bytes = count == 2 ? strtoull(arguments[1], NULL, 10) : 0;
    if (bytes == 0) {
        fprintf(stderr, "usage: make_present BYTES\n");
        return 2;
    }
    char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        perror("make_present: mmap");
        return 1;
    }
    // A hint: without it pieces are smaller.
    madvise(memory, bytes, MADV_HUGEPAGE);
    memset(memory, 1, bytes);
    return 0;
}
