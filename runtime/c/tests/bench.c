/* The work that benchmarks/hosts.py times: bench ONNXRUNTIME BUNDLE READY. Writes a byte to the file descriptor READY
 * after the first sample, then what it took, as JSON. Then it prints {}, and answers each line of stdin, as
 * {"rows": 1, "seconds": 0.3}, with the seconds of one vae_sample of so many rows, over all calls that fit into the time. */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>
#include <vae_runtime.h>

enum { MAX_CALLS = 1 << 20 };

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* The most memory that this program has had, in bytes. */
static double memory(void) {
    char line[256];
    double kilobytes = 0;
    FILE *file = fopen("/proc/self/status", "r");
    while (file && fgets(line, sizeof line, file))
        if (!strncmp(line, "VmHWM:", 6)) kilobytes = strtod(line + 6, NULL);
    if (file) fclose(file);
    return 1024 * kilobytes;
}

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int count, char **arguments) {
    static double taken[MAX_CALLS];
    vae_options options = VAE_OPTIONS_INIT;
    vae *v;
    if (count != 4) return fprintf(stderr, "usage: bench ONNXRUNTIME BUNDLE READY\n"), 2;
    options.onnxruntime = arguments[1];
    if (vae_open(arguments[2], &options, &v) != VAE_OK) return fprintf(stderr, "%s\n", vae_last_error()), 1;
    size_t row = vae_info(v)->output.count, rows = 1;
    float *x = malloc(row * sizeof *x);
    if (!x || vae_sample(v, 1, NULL, x, row) != VAE_OK) return fprintf(stderr, "%s\n", vae_last_error()), 1;
    int ready = atoi(arguments[3]);
    if (write(ready, "1", 1) != 1) return 1;
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    double cpu = (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
                 1e-6 * (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec);
    dprintf(ready, "{\"cpu\": %.6f, \"memory\": %.0f}", cpu, memory());
    double seconds;
    printf("{}\n");
    fflush(stdout);
    for (uint64_t start = 0; scanf(" {\"rows\": %zu, \"seconds\": %lf}", &rows, &seconds) == 2;) {
        size_t calls = 0;
        float *grown = realloc(x, rows * row * sizeof *x);
        if (!grown) return 1;
        x = grown;
        double begin = now() + 0.01, before = begin, end;
        do {
            vae_draw draw = {.seed = 7, .start = start++};
            if (vae_sample(v, rows, &draw, x, rows * row) != VAE_OK)
                return fprintf(stderr, "%s\n", vae_last_error()), 1;
            end = now();
            /* The first calls refill the caches. */
            if (end < begin) before = end;
            if (end >= begin) taken[calls++] = end - before, before = end;
        } while (end - begin < seconds && calls < MAX_CALLS);
        qsort(taken, calls, sizeof *taken, compare);
        printf("{\"median\": %.9f, \"min\": %.9f, \"calls\": %zu}\n", taken[calls / 2], taken[0], calls);
        fflush(stdout);
    }
    free(x);
    vae_close(v);
    return 0;
}
