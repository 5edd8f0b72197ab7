/* The functions of vae_runtime.h: api ONNXRUNTIME BUNDLES. */
#include <vae_runtime.h>

#include <math.h>

#include "check.h"

static const char *library, *bundles;

static vae *opened(const char *name, const char *variant) {
    char path[1024];
    vae_options options = VAE_OPTIONS_INIT;
    vae *v;
    options.onnxruntime = library;
    options.variant = variant;
    snprintf(path, sizeof path, "%s/%s", bundles, name);
    CHECK(vae_open(path, &options, &v) == VAE_OK);
    return v;
}

static int same(const float *a, const float *b, size_t count) { return !memcmp(a, b, count * sizeof *a); }

static int near(const float *a, const float *b, size_t count, float tolerance) {
    for (size_t i = 0; i < count; i++)
        if (!(fabsf(a[i] - b[i]) <= tolerance)) return 0;
    return 1;
}

static void test_open_refuses(void) {
    char path[1024];
    vae_options options = VAE_OPTIONS_INIT;
    vae *v = (vae *)&options;
    options.onnxruntime = library;
    snprintf(path, sizeof path, "%s/plain", bundles);
    REFUSED(VAE_BUNDLE, "does not exist", vae_open("no/such/bundle", &options, &v));
    CHECK(v == NULL);
    REFUSED(VAE_BUNDLE, "SHA256SUMS: missing", vae_open(bundles, &options, &v));
    REFUSED(VAE_BUNDLE, "neither a folder nor", vae_open("/dev/null", &options, &v));
    REFUSED(VAE_BUNDLE, "not a bundle's .zip file", vae_open(library, &options, &v));
    REFUSED(VAE_INPUT, "path", vae_open("", &options, &v));
    REFUSED(VAE_INPUT, "path", vae_open(NULL, &options, &v));
    REFUSED(VAE_INPUT, "opened", vae_open(path, &options, NULL));
    options.variant = "int4";
    REFUSED(VAE_BUNDLE, "int4", vae_open(path, &options, &v));
    options = (vae_options)VAE_OPTIONS_INIT;
    options.onnxruntime = library;
    options.device = "gpu";
    REFUSED(VAE_INPUT, "device", vae_open(path, &options, &v));
    options.device = "cuda";
    REFUSED(VAE_DEVICE, "cuda", vae_open(path, &options, &v));
    options.device = "NoSuchExecutionProvider";
    REFUSED(VAE_DEVICE, "NoSuchExecutionProvider", vae_open(path, &options, &v));
    options.device = NULL;
    options.threads = -1;
    REFUSED(VAE_INPUT, "threads", vae_open(path, &options, &v));
    options.threads = 0;
    options.digest = "sha256:0";
    REFUSED(VAE_INPUT, "digest", vae_open(path, &options, &v));
    options.digest = "sha256:0000000000000000000000000000000000000000000000000000000000000000";
    REFUSED(VAE_BUNDLE, "expected the digest", vae_open(path, &options, &v));
    options.digest = NULL;
    options.onnxruntime = "/no/such/library.so";
    REFUSED(VAE_DEVICE, "options.onnxruntime", vae_open(path, &options, &v));
    options.onnxruntime = "libm.so.6";
    REFUSED(VAE_DEVICE, "ONNX Runtime", vae_open(path, &options, &v));
    CHECK(v == NULL);
    vae_close(NULL);
}

static void test_info(void) {
    vae *v = opened("conditional", NULL);
    const vae_description *d = vae_info(v);
    CHECK(d->latent_count == 1 && d->condition_count == 1 && !strcmp(d->conditions[0].name, "label"));
    CHECK(d->conditions[0].class_count == 10 && !strcmp(d->conditions[0].classes[7], "seven"));
    CHECK(d->conditions[0].is_integer && d->conditions[0].count == 1 && d->conditions[0].rank == 0);
    CHECK(d->observation.rank == 3 && d->observation.count == 64 && d->output.count == 64);
    CHECK(!strcmp(d->latents[0].kind, "normal") && !strcmp(d->latents[0].prior, "normal"));
    CHECK(!strcmp(d->variant, "fp32") && !strcmp(d->device, "cpu") && !strncmp(d->onnxruntime, "1.", 2));
    CHECK(d->variant_count == 2 && !strcmp(d->variants[0], "encoder/fp32") && !strcmp(d->variants[1], "decoder/fp32"));
    vae_close(v);
    vae *folder = opened("plain", NULL), *zip = opened("plain.zip", NULL);
    CHECK(strlen(vae_info(zip)->digest) == 71 && !strcmp(vae_info(zip)->digest, vae_info(folder)->digest));
    char path[1024];
    vae_options options = VAE_OPTIONS_INIT;
    options.onnxruntime = library;
    options.digest = vae_info(zip)->digest;
    snprintf(path, sizeof path, "%s/plain", bundles);
    vae_close(folder);
    CHECK(vae_open(path, &options, &folder) == VAE_OK);
    vae_close(folder);
    vae_close(zip);
}

static void test_sample_is_prior_and_decode(void) {
    vae *v = opened("digits", NULL);
    enum { N = 130, Z = 8, X = 64 };
    static float x[N * X], z[N * Z], y[N * X];
    vae_draw draw = {.seed = 7};
    CHECK(vae_info(v)->latents[0].count == Z && vae_info(v)->output.count == X);
    CHECK(vae_sample(v, N, &draw, x, N * X) == VAE_OK);
    CHECK(vae_prior(v, NULL, N, &draw, z, N * Z) == VAE_OK);
    vae_array latents = {.floats = z, .count = N * Z};
    CHECK(vae_decode(v, N, &latents, 1, NULL, y, N * X) == VAE_OK);
    CHECK(same(x, y, N * X));
    /* Row i is sample start + i, whatever n and the batch. */
    draw.start = 3;
    draw.batch = 5;
    CHECK(vae_sample(v, 20, &draw, y, 20 * X) == VAE_OK);
    CHECK(near(x + 3 * X, y, 20 * X, 1e-5f));
    CHECK(vae_prior(v, "z", 1, &draw, y, Z) == VAE_OK && same(z + 3 * Z, y, Z));
    /* No draw is seed 0; a temperature of 0 is the usual one. */
    CHECK(vae_prior(v, NULL, 2, NULL, z, 2 * Z) == VAE_OK);
    CHECK(vae_prior(v, NULL, 2, &(vae_draw){.seed = 0, .temperature = 1}, y, 2 * Z) == VAE_OK && same(y, z, 2 * Z));
    CHECK(vae_prior(v, NULL, 2, &(vae_draw){.temperature = VAE_COLD}, y, 2 * Z) == VAE_OK);
    for (int i = 0; i < 2 * Z; i++) CHECK(y[i] == 0);
    vae_close(v);
}

static void test_arguments_are_refused(void) {
    vae *v = opened("plain", NULL);
    float x[64] = {0};
    vae_array latents = {.floats = x, .count = 3};
    REFUSED(VAE_INPUT, "n:", vae_sample(v, 0, NULL, x, 0));
    REFUSED(VAE_INPUT, "expected room for 2 rows of 6 numbers, got 6", vae_sample(v, 2, NULL, x, 6));
    REFUSED(VAE_INPUT, "x:", vae_sample(v, 2, NULL, NULL, 12));
    REFUSED(VAE_INPUT, "expected room", vae_sample(v, SIZE_MAX, NULL, x, 6));
    REFUSED(VAE_INPUT, "expected room", vae_prior(v, NULL, SIZE_MAX, NULL, x, 6));
    REFUSED(VAE_INPUT, "latent", vae_prior(v, "w", 2, NULL, x, 6));
    REFUSED(VAE_INPUT, "temperature", vae_sample(v, 1, &(vae_draw){.temperature = -2}, x, 6));
    REFUSED(VAE_INPUT, "temperature", vae_sample(v, 1, &(vae_draw){.temperature = NAN}, x, 6));
    REFUSED(VAE_INPUT, "truncation", vae_sample(v, 1, &(vae_draw){.truncation = 0.001}, x, 6));
    REFUSED(VAE_INPUT, "axis 0",
            vae_sample(v, 1, &(vae_draw){.shapes = &(vae_shape){NULL, 1, {4}}, .shape_count = 1}, x, 6));
    REFUSED(VAE_INPUT, "conditions", vae_sample(v, 1, &(vae_draw){.conditions = &latents, .condition_count = 1}, x, 6));
    REFUSED(VAE_INPUT, "draw", vae_sample(v, 1, &(vae_draw){.condition_count = 1}, x, 6));
    REFUSED(VAE_INPUT, "latents", vae_decode(v, 1, NULL, 1, NULL, x, 6));
    REFUSED(VAE_INPUT, "latents: expected z", vae_decode(v, 1, NULL, 0, NULL, x, 6));
    REFUSED(VAE_INPUT, "each name once", vae_decode(v, 1, (vae_array[]){latents, latents}, 2, NULL, x, 6));
    latents.count = 2;
    REFUSED(VAE_INPUT, "expected 1 rows of 3 numbers, got 2", vae_decode(v, 1, &latents, 1, NULL, x, 6));
    latents = (vae_array){.integers = (int64_t *)x, .count = 3};
    REFUSED(VAE_INPUT, "float32", vae_decode(v, 1, &latents, 1, NULL, x, 6));
    x[1] = NAN;
    latents = (vae_array){.floats = x, .count = 3};
    REFUSED(VAE_INPUT, "number 1", vae_decode(v, 1, &latents, 1, NULL, x + 32, 6));
    x[1] = 0;
    vae_array observations = {.floats = x, .count = 6};
    REFUSED(VAE_INPUT, "posteriors", vae_encode(v, 1, &observations, NULL, NULL, 0));
    REFUSED(VAE_INPUT, "posteriors", vae_encode(v, 1, &observations, NULL, &(vae_posterior){.count = 3}, 1));
    REFUSED(VAE_INPUT, "codes",
            vae_encode(v, 1, &observations, NULL, &(vae_posterior){.codes = (int64_t *)x, .count = 3}, 1));
    REFUSED(VAE_INPUT, "expected room",
            vae_encode(v, 1, &observations, NULL, &(vae_posterior){.mean = x + 9, .count = 2}, 1));
    observations.name = "y";
    REFUSED(VAE_INPUT, "name", vae_encode(v, 1, &observations, NULL, &(vae_posterior){.mean = x + 9, .count = 3}, 1));
    REFUSED(VAE_INPUT, "x", vae_reconstruct(v, 1, NULL, NULL, x, 6));
    REFUSED(VAE_INPUT, "mean", vae_reparameterize(1, 3, NULL, x, 0, NULL, x));
    REFUSED(VAE_INPUT, "size", vae_noise_words(0, 0, 1, SIZE_MAX, 0, (uint32_t *)x));
    REFUSED(VAE_INPUT, "n:", vae_noise_uniform(0, 0, SIZE_MAX, 2, 0, x));
    REFUSED(VAE_INPUT, "truncation", vae_noise_normal(0, 0, 1, 1, 0, -1, x));
    REFUSED(VAE_INPUT, "x and out", vae_to_uint8(NULL, 1, 0, 255, (uint8_t *)x));
    vae_close(v);
}

static void test_bytes_are_rounded_half_to_even(void) {
    const float x[] = {-1, 0.4f, 0.5f, 1.5f, 2.5f, 254.5f, 255.5f, 3e38f};
    const uint8_t wanted[] = {0, 0, 0, 2, 2, 254, 255, 255};
    uint8_t out[8];
    CHECK(vae_to_uint8(x, 8, 0, 1, out) == VAE_OK && !memcmp(out, wanted, 8));
    CHECK(vae_to_uint8(x, 8, -1, 2, out) == VAE_OK && out[0] == 0 && out[1] == 3 && out[2] == 3 && out[3] == 5);
    CHECK(vae_to_uint8(NULL, 0, 0, 1, NULL) == VAE_OK);
    REFUSED(VAE_INPUT, "finite", vae_to_uint8((const float[]){0, NAN}, 2, 0, 1, out));
    REFUSED(VAE_INPUT, "finite", vae_to_uint8((const float[]){-INFINITY}, 1, 0, 1, out));
}

static void test_no_bundle_is_refused(void) {
    float x[8] = {0};
    vae_array values = {.floats = x, .count = 6};
    vae_shape shape;
    REFUSED(VAE_INPUT, "vae_open", vae_sample(NULL, 1, NULL, x, 6));
    REFUSED(VAE_INPUT, "vae_open", vae_prior(NULL, NULL, 1, NULL, x, 3));
    REFUSED(VAE_INPUT, "vae_open", vae_decode(NULL, 1, &values, 1, NULL, x, 6));
    REFUSED(VAE_INPUT, "vae_open", vae_encode(NULL, 1, &values, NULL, &(vae_posterior){.mean = x, .count = 3}, 1));
    REFUSED(VAE_INPUT, "vae_open", vae_reconstruct(NULL, 1, &values, NULL, x, 6));
    REFUSED(VAE_INPUT, "vae_open", vae_decoded_shape(NULL, NULL, 0, &shape));
    REFUSED(VAE_INPUT, "vae_open", vae_encoded_shape(NULL, NULL, NULL, &shape));
    REFUSED(VAE_INPUT, "vae_open", vae_verify(NULL, NULL, NULL));
    vae_stream *stream = (vae_stream *)x;
    REFUSED(VAE_INPUT, "vae_open", vae_stream_open(NULL, 1, NULL, &stream));
    CHECK(stream == NULL && vae_stream_hop(NULL) == 0);
    REFUSED(VAE_INPUT, "vae_stream_open", vae_stream_decode(NULL, &values, x, 6));
    CHECK(vae_info(NULL) == NULL);
}

/* With batches, an output over an input would be read as one: only vae_reconstruct writes where it reads. */
static void test_outputs_over_inputs_are_refused(void) {
    vae *v = opened("plain", NULL);
    enum { N = 70 };
    static float room[N * 9], copy[N * 6];
    float *x = room, *z = room + N * 6;
    vae_array latents = {.floats = z, .count = N * 3}, observations = {.floats = x, .count = N * 6};
    CHECK(vae_sample(v, N, NULL, x, N * 6) == VAE_OK && vae_prior(v, NULL, N, NULL, z, N * 3) == VAE_OK);
    REFUSED(VAE_INPUT, "apart from z", vae_decode(v, N, &latents, 1, NULL, x + 1, N * 6));
    REFUSED(VAE_INPUT, "apart from x",
            vae_encode(v, N, &observations, NULL, &(vae_posterior){.std = z - 1, .count = N * 3}, 1));
    CHECK(vae_decode(v, N, &latents, 1, NULL, x, N * 6) == VAE_OK);
    CHECK(vae_reconstruct(v, N, &observations, NULL, copy, N * 6) == VAE_OK);
    CHECK(vae_reconstruct(v, N, &observations, NULL, x, N * 6) == VAE_OK && same(x, copy, N * 6));
    vae_posterior twice[] = {{.mean = z, .count = N * 3}, {.mean = copy, .count = N * 3}};
    REFUSED(VAE_INPUT, "mean twice", vae_encode(v, N, &observations, NULL, twice, 2));
    vae_close(v);
    v = opened("conditional", NULL);
    static union {
        int64_t labels[2];
        float x[128];
    } both = {.labels = {3, 3}};
    vae_array label = {.name = "label", .integers = both.labels, .count = 2};
    vae_draw draw = {.conditions = &label, .condition_count = 1};
    REFUSED(VAE_INPUT, "apart from label", vae_sample(v, 2, &draw, both.x, 128));
    label.count = 1;
    REFUSED(VAE_INPUT, "apart from label", vae_sample(v, 2, &draw, both.x, 128));
    vae_close(v);
}

static void test_conditions(void) {
    vae *v = opened("conditional", NULL);
    float a[3 * 64], b[3 * 64], c[3 * 64];
    int64_t sevens[] = {7, 7, 7}, eight = 8, wrong = 10;
    vae_array label = {.name = "label", .class_name = "seven"};
    vae_draw draw = {.seed = 1, .conditions = &label, .condition_count = 1};
    CHECK(vae_sample(v, 3, &draw, a, 3 * 64) == VAE_OK);
    label = (vae_array){.name = "label", .integers = sevens, .count = 3};
    CHECK(vae_sample(v, 3, &draw, b, 3 * 64) == VAE_OK && same(a, b, 3 * 64));
    label = (vae_array){.name = "label", .integers = sevens, .count = 1};
    CHECK(vae_sample(v, 3, &draw, b, 3 * 64) == VAE_OK && same(a, b, 3 * 64));
    label = (vae_array){.name = "label", .integers = &eight, .count = 1};
    CHECK(vae_sample(v, 3, &draw, c, 3 * 64) == VAE_OK && !same(a, c, 3 * 64));
    label.integers = &wrong;
    REFUSED(VAE_INPUT, "expected 0 to 9, got 10", vae_sample(v, 3, &draw, c, 3 * 64));
    label = (vae_array){.name = "label", .integers = sevens, .count = 2};
    REFUSED(VAE_INPUT, "3 rows", vae_sample(v, 3, &draw, c, 3 * 64));
    label = (vae_array){.name = "label", .class_name = "eleven"};
    REFUSED(VAE_INPUT, "eleven", vae_sample(v, 3, &draw, c, 3 * 64));
    label.name = "style";
    REFUSED(VAE_INPUT, "style", vae_sample(v, 3, &draw, c, 3 * 64));
    REFUSED(VAE_INPUT, "'label', got nothing", vae_sample(v, 3, NULL, c, 3 * 64));
    vae_array both[] = {{.name = "label", .class_name = "seven"}, {.name = "label", .class_name = "eight"}};
    draw.conditions = both;
    draw.condition_count = 2;
    REFUSED(VAE_INPUT, "each once", vae_sample(v, 3, &draw, c, 3 * 64));
    vae_close(v);
}

static void test_encode_and_reconstruct(void) {
    vae *v = opened("plain", NULL);
    enum { N = 70 };
    static float x[N * 6], mean[N * 3], std[N * 3], logvar[N * 3], z[N * 3], y[N * 6], w[N * 6];
    CHECK(vae_noise_uniform(3, 0, N, 6, 0, x) == VAE_OK);
    vae_array observations = {.floats = x, .count = N * 6};
    vae_posterior q = {.mean = mean, .std = std, .logvar = logvar, .count = N * 3};
    CHECK(vae_encode(v, N, &observations, NULL, &q, 1) == VAE_OK);
    for (int i = 0; i < N * 3; i++) CHECK(fabsf(std[i] - expf(logvar[i] / 2)) < 1e-5f);
    vae_array latents = {.floats = mean, .count = N * 3};
    CHECK(vae_decode(v, N, &latents, 1, NULL, y, N * 6) == VAE_OK);
    CHECK(vae_reconstruct(v, N, &observations, NULL, w, N * 6) == VAE_OK && same(y, w, N * 6));
    vae_draw draw = {.seed = 5, .start = 2, .sampled = 1};
    CHECK(vae_reparameterize(N, 3, mean, std, 0, &draw, z) == VAE_OK && !same(z, mean, N * 3));
    latents.floats = z;
    CHECK(vae_decode(v, N, &latents, 1, NULL, y, N * 6) == VAE_OK);
    CHECK(vae_reconstruct(v, N, &observations, &draw, w, N * 6) == VAE_OK && same(y, w, N * 6));
    vae_close(v);
}

static void test_several_latents(void) {
    vae *v = opened("two-latents", NULL);
    const vae_description *d = vae_info(v);
    CHECK(d->latent_count == 2);
    const char *first = d->latents[0].name, *second = d->latents[1].name;
    float x[2 * 6] = {0}, a[4], b[6], y[2 * 6], w[2 * 6], room[6];
    REFUSED(VAE_INPUT, "latent: expected the name", vae_prior(v, NULL, 2, NULL, a, 4));
    CHECK(vae_prior(v, first, 2, NULL, a, 4) == VAE_OK && vae_prior(v, second, 2, NULL, b, 6) == VAE_OK);
    CHECK(!same(a, b, 2));
    /* In any order. */
    vae_array latents[] = {{.name = second, .floats = b, .count = 6}, {.name = first, .floats = a, .count = 4}};
    CHECK(vae_decode(v, 2, latents, 2, NULL, y, 12) == VAE_OK);
    CHECK(vae_sample(v, 2, NULL, w, 12) == VAE_OK && same(y, w, 12));
    REFUSED(VAE_INPUT, "give every latent", vae_decode(v, 2, latents, 1, NULL, y, 12));
    vae_array observations = {.floats = x, .count = 12};
    vae_posterior q[] = {{.latent = second, .mean = b, .std = room, .count = 6},
                         {.latent = first, .mean = a, .count = 4}};
    CHECK(vae_encode(v, 2, &observations, NULL, q, 2) == VAE_OK);
    CHECK(vae_decode(v, 2, latents, 2, NULL, y, 12) == VAE_OK);
    CHECK(vae_reconstruct(v, 2, &observations, NULL, w, 12) == VAE_OK && same(y, w, 12));
    vae_close(v);
}

static void test_dynamic_axes(void) {
    vae *v = opened("dynamic", NULL);
    const vae_description *d = vae_info(v);
    CHECK(d->latents[0].dynamic[1] && !d->latents[0].dynamic[0]);
    vae_shape latent = {NULL, 2, {d->latents[0].sizes[0], 6}}, x, z;
    CHECK(vae_decoded_shape(v, &latent, 1, &x) == VAE_OK && x.rank == 2 && x.sizes[1] == 12);
    CHECK(vae_encoded_shape(v, &x, NULL, &z) == VAE_OK && z.rank == 2 && z.sizes[1] == 6);
    CHECK(vae_decoded_shape(v, NULL, 0, &x) == VAE_OK && x.sizes[1] == d->observation.sizes[1]);
    float y[2 * 12], w[2 * 12], room[64];
    vae_draw draw = {.shapes = &latent, .shape_count = 1};
    CHECK(vae_sample(v, 2, &draw, y, 24) == VAE_OK);
    REFUSED(VAE_INPUT, "expected room for 2 rows of 12 numbers, got 64", vae_sample(v, 2, &draw, room, 64));
    CHECK(vae_prior(v, NULL, 2, &draw, room, 2 * latent.sizes[0] * 6) == VAE_OK);
    vae_array latents = {.floats = room, .count = 2 * latent.sizes[0] * 6, .rank = 2, .sizes = {latent.sizes[0], 6}};
    CHECK(vae_decode(v, 2, &latents, 1, NULL, w, 24) == VAE_OK && same(y, w, 24));
    vae_array observations = {.floats = y, .count = 24, .rank = 2, .sizes = {1, 12}};
    CHECK(vae_reconstruct(v, 2, &observations, NULL, w, 24) == VAE_OK);
    latent.name = "w";
    REFUSED(VAE_INPUT, "got 'w'", vae_prior(v, NULL, 2, &draw, room, 16));
    latent.name = NULL;
    latent.sizes[1] = 1u << 30;
    REFUSED(VAE_INPUT, "expected a proven size", vae_sample(v, 2, &draw, y, 24));
    vae_close(v);
}

/* A stream gives what the undivided decoder gives, however it is divided. */
static void test_streams(void) {
    enum { N = 3, CHANNELS = 2, LENGTH = 8, HOP = 4 };
    static const size_t DIVISIONS[][4] = {{8, 0}, {1, 7, 0}, {3, 3, 2, 0}, {2, 1, 5, 0}};
    static float z[N * CHANNELS * LENGTH], whole[N * LENGTH * HOP], part[N * CHANNELS * LENGTH], x[N * LENGTH * HOP];
    vae *v = opened("stream", NULL);
    int64_t speakers[N] = {0, 1, 0};
    vae_array condition = {.name = vae_info(v)->conditions[0].name, .integers = speakers, .count = N};
    vae_draw draw = {.seed = 3, .conditions = &condition, .condition_count = 1};
    vae_stream *s;
    CHECK(vae_info(v)->latents[0].sizes[1] == LENGTH &&
          vae_prior(v, NULL, N, &draw, z, N * CHANNELS * LENGTH) == VAE_OK);
    vae_array latents = {.floats = z, .count = N * CHANNELS * LENGTH};
    CHECK(vae_decode(v, N, &latents, 1, &draw, whole, N * LENGTH * HOP) == VAE_OK);
    CHECK(vae_stream_open(v, N, &draw, &s) == VAE_OK);
    REFUSED(VAE_INPUT, "apart from", vae_stream_decode(s, &latents, z + 1, N * LENGTH * HOP));
    vae_stream_close(s);
    for (size_t i = 0; i < sizeof DIVISIONS / sizeof *DIVISIONS; i++) {
        CHECK(vae_stream_open(v, N, &draw, &s) == VAE_OK && vae_stream_hop(s) == HOP);
        for (size_t k = 0, start = 0; k < 4 && DIVISIONS[i][k]; start += DIVISIONS[i][k++]) {
            size_t length = DIVISIONS[i][k];
            for (size_t row = 0; row < N * CHANNELS; row++)
                memcpy(part + row * length, z + row * LENGTH + start, length * sizeof *z);
            vae_array chunk = {.floats = part, .count = N * CHANNELS * length, .rank = 2, .sizes = {CHANNELS, length}};
            CHECK(vae_stream_decode(s, &chunk, x, N * length * HOP) == VAE_OK);
            for (size_t row = 0; row < N; row++)
                CHECK(near(x + row * length * HOP, whole + (row * LENGTH + start) * HOP, length * HOP, 1e-5f));
        }
        vae_stream_close(s);
    }
    CHECK(vae_stream_open(v, N, &draw, &s) == VAE_OK);
    REFUSED(VAE_INPUT, "expected room", vae_stream_decode(s, &latents, x, 1));
    REFUSED(VAE_INPUT, "z and x", vae_stream_decode(s, NULL, x, 1));
    latents.rank = 2, latents.sizes[0] = 3, latents.sizes[1] = LENGTH;
    REFUSED(VAE_INPUT, "axis 0", vae_stream_decode(s, &latents, x, N * LENGTH * HOP));
    latents.sizes[0] = CHANNELS, latents.sizes[1] = 0;
    REFUSED(VAE_INPUT, "axis 1", vae_stream_decode(s, &latents, x, N * LENGTH * HOP));
    vae_stream_close(s);
    REFUSED(VAE_INPUT, "expected", vae_stream_open(v, N, NULL, &s));
    CHECK(s == NULL);
    REFUSED(VAE_INPUT, "n:", vae_stream_open(v, 0, &draw, &s));
    vae_stream_close(NULL);
    vae_close(v);
    v = opened("dynamic", NULL);
    REFUSED(VAE_INPUT, "causal", vae_stream_open(v, 1, NULL, &s));
    vae_close(v);
}

/* Codes are integers of 64 bits, in streams too. */
static void test_streams_of_codes(void) {
    enum { N = 2, LENGTH = 8, HOP = 4 };
    static const int64_t CODES[N * LENGTH] = {0, 1, 2, 3, 4, 5, 6, 7, 7, 5, 3, 1, 6, 4, 2, 0};
    static float whole[N * LENGTH * HOP], x[N * LENGTH * HOP];
    vae *v = opened("stream-codes", NULL);
    vae_stream *s;
    vae_array latents = {.integers = CODES, .count = N * LENGTH};
    CHECK(vae_decode(v, N, &latents, 1, NULL, whole, N * LENGTH * HOP) == VAE_OK);
    for (size_t length = 1; length <= LENGTH; length *= 2) {
        CHECK(vae_stream_open(v, N, NULL, &s) == VAE_OK && vae_stream_hop(s) == HOP);
        for (size_t start = 0; start < LENGTH; start += length) {
            /* An array of its own, so that sanitizers see what is read beyond it. */
            int64_t *part = malloc(N * length * sizeof *part);
            CHECK(part != NULL);
            for (size_t row = 0; row < N; row++)
                memcpy(part + row * length, CODES + row * LENGTH + start, length * sizeof *part);
            vae_array chunk = {.integers = part, .count = N * length, .rank = 2, .sizes = {1, length}};
            CHECK(vae_stream_decode(s, &chunk, x, N * length * HOP) == VAE_OK);
            for (size_t row = 0; row < N; row++)
                CHECK(near(x + row * length * HOP, whole + (row * LENGTH + start) * HOP, length * HOP, 1e-5f));
            free(part);
        }
        vae_stream_close(s);
    }
    CHECK(vae_stream_open(v, N, NULL, &s) == VAE_OK);
    int64_t wrong[N * LENGTH] = {[N * LENGTH - 1] = 8};
    vae_array beyond = {.integers = wrong, .count = N * LENGTH},
              floats = {.floats = whole, .count = N * LENGTH}; /* of another type */
    REFUSED(VAE_INPUT, "expected 0 to 7", vae_stream_decode(s, &beyond, x, N * LENGTH * HOP));
    REFUSED(VAE_INPUT, "expected numbers of int64", vae_stream_decode(s, &floats, x, N * LENGTH * HOP));
    /* The last of the codes, which begin 8 bytes apart. */
    latents.integers = (const int64_t *)(void *)x;
    memset(x, 0, sizeof x);
    REFUSED(VAE_INPUT, "apart from", vae_stream_decode(s, &latents, x + 2 * (N * LENGTH - 1), N * LENGTH * HOP));
    vae_stream_close(s);
    vae_close(v);
}

static void test_codes_mixture_and_sphere(void) {
    vae *v = opened("codes", NULL);
    float x[8] = {0}, y[8];
    int64_t codes[4], wrong[4] = {0, 0, 8, 0};
    REFUSED(VAE_INPUT, "no prior", vae_sample(v, 1, NULL, y, 8));
    vae_array observations = {.floats = x, .count = 8}, latents = {.integers = codes, .count = 4};
    CHECK(vae_encode(v, 1, &observations, NULL, &(vae_posterior){.codes = codes, .count = 4}, 1) == VAE_OK);
    CHECK(vae_decode(v, 1, &latents, 1, NULL, y, 8) == VAE_OK);
    CHECK(vae_reconstruct(v, 1, &observations, NULL, x, 8) == VAE_OK && same(x, y, 8));
    REFUSED(VAE_INPUT, "no posterior", vae_reconstruct(v, 1, &observations, &(vae_draw){.sampled = 1}, x, 8));
    latents.integers = wrong;
    REFUSED(VAE_INPUT, "number 2: expected 0 to 7, got 8", vae_decode(v, 1, &latents, 1, NULL, y, 8));
    vae_close(v);
    v = opened("sphere", NULL);
    CHECK(vae_prior(v, NULL, 1, NULL, y, 3) == VAE_OK && fabsf(y[0] * y[0] + y[1] * y[1] + y[2] * y[2] - 1) < 1e-6f);
    REFUSED(VAE_INPUT, "takes neither", vae_sample(v, 1, &(vae_draw){.temperature = 0.5}, x, 6));
    vae_close(v);
    v = opened("mixture", NULL);
    CHECK(vae_sample(v, 1, NULL, y, 6) == VAE_OK);
    vae_close(v);
}

static int passed, failed, skipped;

static void count_checks(void *context, const char *what, int result, const char *detail) {
    CHECK(context == &passed && *what && *detail);
    *(result == 1 ? &passed : result ? &skipped : &failed) += 1;
}

static void test_verify(void) {
    static const char *const NAMES[] = {"plain", "plain.zip", "digits", "conditional", "two-latents",
                                        "codes", "mixture",   "sphere", "dynamic",     "stream"};
    for (size_t i = 0; i < sizeof NAMES / sizeof *NAMES; i++) {
        vae *v = opened(NAMES[i], NULL);
        passed = failed = skipped = 0;
        CHECK(vae_verify(v, count_checks, &passed) == VAE_OK && passed >= 3 && !failed && !skipped);
        vae_close(v);
    }
}

/* Memory that is counted, and refused after a number of times. */
typedef struct {
    size_t taken, given, allowed;
} counter;

static void *take(void *context, size_t size) {
    counter *c = context;
    if (c->taken == c->allowed) return NULL;
    c->taken++;
    return malloc(size);
}

static void give(void *context, void *memory) {
    ((counter *)context)->given++;
    free(memory);
}

static void test_nothing_is_allocated_after_the_first_call(void) {
    static const char *const NAMES[] = {"digits", "mixture", "sphere", "two-latents"};
    for (size_t i = 0; i < sizeof NAMES / sizeof *NAMES; i++) {
        char path[1024];
        counter c = {0, 0, SIZE_MAX};
        vae_options options = VAE_OPTIONS_INIT;
        vae *v;
        static float x[70 * 64];
        options.onnxruntime = library;
        options.allocator = (vae_allocator){take, give, &c};
        snprintf(path, sizeof path, "%s/%s", bundles, NAMES[i]);
        CHECK(vae_open(path, &options, &v) == VAE_OK);
        size_t row = vae_info(v)->output.count;
        CHECK(vae_sample(v, 1, NULL, x, row) == VAE_OK && vae_sample(v, 70, NULL, x, 70 * row) == VAE_OK);
        size_t before = c.taken, after = c.given;
        for (uint64_t seed = 0; seed < 20; seed++) {
            CHECK(vae_sample(v, 1, &(vae_draw){.seed = seed}, x, row) == VAE_OK);
            CHECK(vae_sample(v, 70, &(vae_draw){.seed = seed, .start = 9}, x, 70 * row) == VAE_OK);
        }
        CHECK(c.taken == before && c.given == after);
        /* Calls of many shapes are not kept forever. */
        for (size_t n = 1; n < 40; n++) CHECK(vae_sample(v, n, NULL, x, n * row) == VAE_OK);
        vae_close(v);
        CHECK(c.taken == c.given);
    }
    vae_options options = VAE_OPTIONS_INIT;
    vae *v;
    options.allocator.allocate = take;
    REFUSED(VAE_INPUT, "allocator", vae_open("x", &options, &v));
}

/* A stream whose states are not those of its last chunk does not go on. */
static void test_a_stream_that_failed(void) {
    enum { COUNT = 2 * 4 };
    char path[1024];
    counter c = {0, 0, SIZE_MAX};
    vae_options options = VAE_OPTIONS_INIT;
    vae *v;
    vae_stream *s;
    int64_t speaker = 0;
    float z[COUNT] = {0}, x[16];
    vae_array condition = {.name = "speaker", .integers = &speaker, .count = 1},
              chunk = {.floats = z, .count = COUNT, .rank = 2, .sizes = {2, 4}};
    vae_draw draw = {.conditions = &condition, .condition_count = 1};
    options.onnxruntime = library;
    options.allocator = (vae_allocator){take, give, &c};
    snprintf(path, sizeof path, "%s/stream", bundles);
    CHECK(vae_open(path, &options, &v) == VAE_OK && vae_stream_open(v, 1, &draw, &s) == VAE_OK);
    c.allowed = c.taken;
    REFUSED(VAE_INPUT, "expected room", vae_stream_decode(s, &chunk, x, 1));
    REFUSED(VAE_FAILED, "memory", vae_stream_decode(s, &chunk, x, 16));
    c.allowed = SIZE_MAX;
    REFUSED(VAE_INPUT, "begin another stream", vae_stream_decode(s, &chunk, x, 16));
    vae_stream_close(s);
    CHECK(vae_stream_open(v, 1, &draw, &s) == VAE_OK);
    REFUSED(VAE_INPUT, "expected room", vae_stream_decode(s, &chunk, x, 1));
    CHECK(vae_stream_decode(s, &chunk, x, 16) == VAE_OK);
    vae_stream_close(s);
    vae_close(v);
    CHECK(c.taken == c.given);
}

/* Wherever memory ends, the call fails and nothing is lost. */
static void test_memory_that_ends(void) {
    for (size_t allowed = 0;; allowed++) {
        char path[1024];
        counter c = {0, 0, allowed};
        vae_options options = VAE_OPTIONS_INIT;
        vae *v = NULL;
        float x[6], y[6];
        options.onnxruntime = library;
        options.allocator = (vae_allocator){take, give, &c};
        snprintf(path, sizeof path, "%s/mixture", bundles);
        vae_status status = vae_open(path, &options, &v);
        if (!status) status = vae_sample(v, 1, NULL, x, 6);
        vae_array observations = {.floats = x, .count = 6};
        if (!status) status = vae_reconstruct(v, 1, &observations, NULL, y, 6);
        if (!status) status = vae_verify(v, NULL, NULL);
        vae_close(v);
        CHECK(c.taken == c.given);
        if (!status) {
            CHECK(allowed > 20);
            return;
        }
        /* Only vae_verify turns it into a check that fails. */
        CHECK(status == VAE_FAILED || status == VAE_BUNDLE);
        CHECK(strstr(vae_last_error(), "memory"));
    }
}

int main(int count, char **arguments) {
    if (count != 3) return fprintf(stderr, "usage: api ONNXRUNTIME BUNDLES\n"), 2;
    library = arguments[1], bundles = arguments[2];
    test_open_refuses();
    test_info();
    test_sample_is_prior_and_decode();
    test_arguments_are_refused();
    test_bytes_are_rounded_half_to_even();
    test_no_bundle_is_refused();
    test_outputs_over_inputs_are_refused();
    test_conditions();
    test_encode_and_reconstruct();
    test_several_latents();
    test_dynamic_axes();
    test_streams();
    test_streams_of_codes();
    test_codes_mixture_and_sphere();
    test_verify();
    test_nothing_is_allocated_after_the_first_call();
    test_a_stream_that_failed();
    test_memory_that_ends();
    return 0;
}
