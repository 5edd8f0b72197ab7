/* Draw 16 observations of a bundle with seed 7, and write them as float32: sample BUNDLE ONNXRUNTIME > samples.bin */
#include <stdio.h>
#include <stdlib.h>
#include <vae_runtime.h>

int main(int count, char **arguments) {
    vae_options options = VAE_OPTIONS_INIT;
    if (count > 2) options.onnxruntime = arguments[2];
    vae *v = NULL;
    int status = vae_open(count > 1 ? arguments[1] : "models/mnist", &options, &v);
    size_t size = status == VAE_OK ? 16 * vae_info(v)->output.count : 0;
    float *x = malloc(size * sizeof *x + 1);
    if (status == VAE_OK && x) status = vae_sample(v, 16, &(vae_draw){.seed = 7}, x, size);
    if (status != VAE_OK) fprintf(stderr, "%s\n", vae_last_error());
    if (status == VAE_OK && x) fwrite(x, sizeof *x, size, stdout);
    free(x);
    vae_close(v);
    return status;
}
