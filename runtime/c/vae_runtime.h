/* vae-runtime: sample VAEs from bundles, in C99. README.md beside this file is the guide.
 *
 * A bundle is a folder or a .zip file that vae-export wrote. Sample i of seed s is the same in every language: latents
 * bit for bit, decoded values within the tolerance of the bundle's variant.
 *
 *     vae_options options = VAE_OPTIONS_INIT;
 *     vae *v;
 *     if (vae_open("models/mnist", &options, &v) != VAE_OK) return fprintf(stderr, "%s\n", vae_last_error()), 1;
 *     vae_sample(v, 16, &(vae_draw){.seed = 7}, x, 16 * 28 * 28);
 *     vae_close(v);
 *
 * There is no global state. A `vae` may be shared by threads. All arrays are in C order, rows first. Arrays that are
 * written must not overlap those that are read, unless a function says so.
 */
#ifndef VAE_RUNTIME_H
#define VAE_RUNTIME_H

#include <stddef.h>
#include <stdint.h>

#if defined(VAE_SHARED) && defined(_WIN32)
#ifdef VAE_BUILDING
#define VAE_API __declspec(dllexport)
#else
#define VAE_API __declspec(dllimport)
#endif
#elif defined(__GNUC__)
#define VAE_API __attribute__((visibility("default")))
#else
#define VAE_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define VAE_VERSION "0.1.0"

/* The most axes that an array has, without the axis of rows. */
#define VAE_AXES 8

/* The results of functions. Each function that fails leaves one line in vae_last_error(). */
typedef enum {
    VAE_OK = 0,
    VAE_BUNDLE = 1, /* the bundle is missing, damaged, altered, or of a format that this version does not read */
    VAE_INPUT = 2,  /* an argument is not as expected */
    VAE_DEVICE = 3, /* the device or ONNX Runtime itself is unavailable */
    VAE_FAILED = 4  /* ONNX Runtime failed, or memory does not suffice */
} vae_status;

/* The last error of this thread: `place: expected X, got Y; next step`. Valid until the thread's next failing call. */
VAE_API const char *vae_last_error(void);

/* Where this library takes its own memory; ONNX Runtime has its own. `release` gets what `allocate` returned, never
 * NULL. Both may be called by any thread that uses the `vae`. */
typedef struct {
    void *(*allocate)(void *context, size_t size);
    void (*release)(void *context, void *memory);
    void *context;
} vae_allocator;

typedef struct {
    const char *device;      /* NULL is "cpu"; "cuda", "cuda:N", or the name of an execution provider */
    int threads;             /* of one call; 0 is 1 */
    const char *variant;     /* such as "int8"; a component without it runs in its first one, as with NULL */
    const char *digest;      /* "sha256:…": any other bundle is refused; NULL takes any */
    const char *onnxruntime; /* path of ONNX Runtime's shared library; NULL searches as the system does */
    vae_allocator allocator; /* NULLs are malloc and free */
} vae_options;

#define VAE_OPTIONS_INIT \
    { \
        NULL, 0, NULL, NULL, NULL, { NULL, NULL, NULL } \
    }

/* An opened bundle on one device. */
typedef struct vae vae;

/* Numbers by the name of a latent or a condition. Exactly one of `floats`, `integers` and `class_name` is given. */
typedef struct {
    const char *name;        /* NULL is the only latent */
    const float *floats;     /* of float32 */
    const int64_t *integers; /* of int64: codes, or numbers of classes */
    const char *class_name;  /* a condition's class for every row */
    size_t count;            /* how many numbers: of all rows, or of a condition also one value for every row */
    size_t rank; /* of another shape than the usual, where axes are dynamic: its axes without rows; else 0 */
    size_t sizes[VAE_AXES];
} vae_array;

/* The shape of one row. */
typedef struct {
    const char *name; /* of the latent; NULL is the only one */
    size_t rank;
    size_t sizes[VAE_AXES];
} vae_shape;

/* The temperature 0, since a field that is left out is 0: each draw is the middle of its distribution. */
#define VAE_COLD (-1.0)

/* What to draw, and under which conditions. Fields that are left out are 0. */
typedef struct {
    uint64_t seed;               /* of vnoise-1; a negative seed is its two's complement */
    uint64_t start;              /* index of the first row: row i is sample start + i of the seed */
    double temperature;          /* scales the noise, 0 … 1e6; a field of 0 is 1, and VAE_COLD is 0 */
    double truncation;           /* bounds the noise before that, 0.01 … 1e6; 0 is no bound */
    const vae_array *conditions; /* by name */
    size_t condition_count;
    const vae_shape *shapes; /* other shapes of latents, where axes are dynamic */
    size_t shape_count;
    size_t batch; /* rows computed at once; 0 is 64 */
    int sampled;  /* vae_decode, vae_encode, vae_reconstruct: draw where else means, or zeros for noise, are taken */
} vae_draw;

/* Open a bundle: check its list of files and its manifest, and load the decoder; the encoder is loaded when needed.
 * `options` may be NULL. Close what is opened. */
VAE_API vae_status vae_open(const char *path, const vae_options *options, vae **opened);

/* Close a bundle that no thread uses any more; NULL is ignored. */
VAE_API void vae_close(vae *v);

/* Draw `n` latents from the prior and decode them into `x`, which has room for exactly `count` numbers:
 * n × vae_info(v)->output.count, or where axes are dynamic as vae_decoded_shape says. `draw` may be NULL: seed 0. */
VAE_API vae_status vae_sample(vae *v, size_t n, const vae_draw *draw, float *x, size_t count);

/* Draw `n` latents of one name (NULL: the only one) from its prior. */
VAE_API vae_status vae_prior(vae *v, const char *latent, size_t n, const vae_draw *draw, float *z, size_t count);

/* Give the likelihood's mean for `n` rows of latents. Latents that are noise of the decoder may be left out. */
VAE_API vae_status vae_decode(vae *v, size_t n, const vae_array *latents, size_t latent_count, const vae_draw *draw,
                              float *x, size_t count);

/* Where vae_encode writes the posterior of one latent; NULLs are left out. `count` numbers each. */
typedef struct {
    const char *latent;         /* NULL is the only one */
    float *mean, *std, *logvar; /* of a normal posterior */
    float *value;               /* of a latent without a distribution */
    int64_t *codes;             /* of codes */
    size_t count;
} vae_posterior;

/* Give the posteriors of `n` observations. */
VAE_API vae_status vae_encode(vae *v, size_t n, const vae_array *x, const vae_draw *draw,
                              const vae_posterior *posteriors, size_t posterior_count);

/* Draw a posterior sample for each of `n` rows of `size` numbers: z = mean + std · eps, both rounded. `latent` is the
 * number of the latent in the manifest, from 0. `z` may be `mean` or `std`. */
VAE_API vae_status vae_reparameterize(size_t n, size_t size, const float *mean, const float *std, size_t latent,
                                      const vae_draw *draw, float *z);

/* Encode and decode `n` observations: through the posterior's mean, or where `sampled` is set through a sample. `out`
 * may be the observations. */
VAE_API vae_status vae_reconstruct(vae *v, size_t n, const vae_array *x, const vae_draw *draw, float *out,
                                   size_t count);

/* The shape of one decoded row for latents of other shapes, and of one latent for an observation of another shape,
 * where axes are dynamic: one row is computed. */
VAE_API vae_status vae_decoded_shape(vae *v, const vae_shape *latents, size_t latent_count, vae_shape *x);
VAE_API vae_status vae_encoded_shape(vae *v, const vae_shape *x, const char *latent, vae_shape *z);

/* A stream of latents that a causal decoder takes in chunks along time, its one dynamic axis. For one thread at a time. */
typedef struct vae_stream vae_stream;

/* Begin a stream of `n` rows, with the conditions of `draw` for all its chunks. Close it before the `vae`. */
VAE_API vae_status vae_stream_open(vae *v, size_t n, const vae_draw *draw, vae_stream **opened);

/* Decode the next chunk: `n` rows of `z`, whose `rank` and `sizes` give its length. Each value of time gives
 * vae_stream_hop values of the observation; `count` is the number of all. Any division gives the same values. After
 * VAE_FAILED or VAE_BUNDLE begin another stream; what VAE_INPUT refuses leaves the stream as it was. */
VAE_API vae_status vae_stream_decode(vae_stream *s, const vae_array *z, float *x, size_t count);
VAE_API size_t vae_stream_hop(const vae_stream *s);
VAE_API void vae_stream_close(vae_stream *s);

/* Receives one check of vae_verify: what, whether it passed (-1: not checked here), and by how much. */
typedef void (*vae_check)(void *context, const char *what, int passed, const char *detail);

/* Hash every file, and replay the golden vectors of each variant on this device. Returns VAE_BUNDLE if a check fails;
 * vae_last_error() names the first. `check` may be NULL. */
VAE_API vae_status vae_verify(vae *v, vae_check check, void *context);

/* A tensor of the manifest. */
typedef struct {
    const char *name;
    int is_integer; /* int64; else float32 */
    size_t rank;
    size_t sizes[VAE_AXES];     /* the usual ones */
    size_t count;               /* their product */
    const char *axes[VAE_AXES]; /* names; NULL where there are none */
    int dynamic[VAE_AXES];      /* whether an axis may have other sizes */
    const char *kind;           /* of a latent's posterior: "normal", "codes" or "none" */
    const char *prior;          /* "normal", "mixture", "sphere" or "none" */
    const char *const *classes; /* names of a condition's values, or NULL */
    size_t class_count;
} vae_field;

typedef struct {
    const char *name, *description, *license; /* the last two may be NULL */
    const char *digest;                       /* "sha256:…" */
    const char *likelihood;
    const char *device;
    const char *variant;     /* of the decoder; of the encoder where there is no decoder */
    const char *onnxruntime; /* its version */
    vae_field observation;
    vae_field output; /* what vae_sample and vae_decode give */
    const vae_field *latents;
    size_t latent_count;
    const vae_field *conditions;
    size_t condition_count;
    const char *const *variants; /* those that ONNX Runtime runs, as "component/name", the encoder's first */
    size_t variant_count;
} vae_description;

/* What the bundle says of itself; valid until vae_close. NULL without a bundle. */
VAE_API const vae_description *vae_info(const vae *v);

/* vnoise-1: `n` rows of `size` numbers of a stream (purpose + 256 · latent), as docs/noise.md specifies. */
VAE_API vae_status vae_noise_words(uint64_t seed, uint64_t start, size_t n, size_t size, uint32_t stream,
                                   uint32_t *out);
VAE_API vae_status vae_noise_uniform(uint64_t seed, uint64_t start, size_t n, size_t size, uint32_t stream, float *out);
VAE_API vae_status vae_noise_normal(uint64_t seed, uint64_t start, size_t n, size_t size, uint32_t stream,
                                    double truncation, float *out);

/* Take `n` numbers to bytes: (x - low) · scale, rounded half to even, at least 0 and at most 255. For a range the scale is
 * 255 / (high - low). VAE_INPUT if a number is not finite. */
VAE_API vae_status vae_to_uint8(const float *x, size_t n, float low, float scale, uint8_t *out);

#ifdef __cplusplus
}
#endif
#endif
