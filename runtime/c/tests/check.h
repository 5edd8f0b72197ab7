/* What the tests share: a check that ends the program where it fails. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "%s:%d: %s; last error: %s\n", __FILE__, __LINE__, #condition, vae_last_error()); \
            exit(1); \
        } \
    } while (0)

/* A call that must fail, with a text in its message, which is one line. */
#define REFUSED(expected, text, call) \
    do { \
        CHECK((call) == (expected)); \
        CHECK(strstr(vae_last_error(), text) && !strchr(vae_last_error(), '\n')); \
    } while (0)
