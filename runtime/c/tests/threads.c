/* Threads that share a bundle draw what one thread draws: threads ONNXRUNTIME BUNDLES. */
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif
#include <pthread.h>
#include <vae_runtime.h>

#include "check.h"

enum { THREADS = 8, ROUNDS = 40, ROW = 6 };

static vae *shared;
static float expected[ROUNDS][3 * ROW];
static const char *library;
static char path[1024];

static void *draw(void *argument) {
    size_t first = *(size_t *)argument;
    float x[3 * ROW], mean[9];
    for (size_t i = 0; i < ROUNDS; i++) {
        size_t round = (first + i) % ROUNDS, n = 1 + round % 3;
        CHECK(vae_sample(shared, n, &(vae_draw){.seed = round}, x, n * ROW) == VAE_OK);
        CHECK(!memcmp(x, expected[round], n * ROW * sizeof *x));
        vae_array observations = {.floats = x, .count = n * ROW};
        CHECK(vae_encode(shared, n, &observations, NULL, &(vae_posterior){.mean = mean, .count = n * 3}, 1) == VAE_OK);
        /* Each thread has its own last error. */
        CHECK(vae_sample(shared, round + 1, NULL, x, 0) == VAE_INPUT);
        char count[32];
        snprintf(count, sizeof count, "room for %zu rows", round + 1);
        CHECK(strstr(vae_last_error(), count));
        if (i % 10 == 0) {
            vae_options options = VAE_OPTIONS_INIT;
            vae *own;
            options.onnxruntime = library;
            CHECK(vae_open(path, &options, &own) == VAE_OK);
            vae_close(own);
        }
    }
    return NULL;
}

int main(int count, char **arguments) {
    pthread_t threads[THREADS];
    size_t numbers[THREADS];
    vae_options options = VAE_OPTIONS_INIT;
    if (count != 3) return 2;
    options.onnxruntime = library = arguments[1];
    snprintf(path, sizeof path, "%s/mixture", arguments[2]);
    CHECK(vae_open(path, &options, &shared) == VAE_OK);
    for (size_t i = 0; i < ROUNDS; i++) {
        size_t n = 1 + i % 3;
        CHECK(vae_sample(shared, n, &(vae_draw){.seed = i}, expected[i], n * ROW) == VAE_OK);
    }
    vae_close(shared);
    CHECK(vae_open(path, &options, &shared) == VAE_OK);
    for (size_t i = 0; i < THREADS; i++) {
        numbers[i] = i * 5;
        CHECK(!pthread_create(&threads[i], NULL, draw, &numbers[i]));
    }
    for (size_t i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    vae_close(shared);
    return 0;
}
