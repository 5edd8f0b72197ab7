// vae_runtime.hpp: cpp ONNXRUNTIME BUNDLES.
#include <vae_runtime.hpp>

#include <array>

#include "check.h"

using namespace vae_runtime;

template <typename Thrown, typename Call> static void refused(const char *text, Call call) {
    try {
        call();
    } catch (const Thrown &error) {
        CHECK(strstr(error.what(), text) != nullptr);
        return;
    }
    CHECK(!"it is refused");
}

int main(int count, char **arguments) {
    if (count != 3) return 2;
    Options options;
    options.onnxruntime = arguments[1];
    const std::string bundles = arguments[2];
    refused<BundleError>("does not exist", [&] { Vae("no/such/bundle", options); });
    options.device = "cuda";
    refused<DeviceError>("cuda", [&] { Vae(bundles + "/plain", options); });
    options.device = "cpu";

    Vae first(bundles + "/conditional", options);
    Vae vae = std::move(first);
    CHECK(first.handle() == nullptr && vae.info().latent_count == 1);
    Draw draw;
    draw.seed = 7;
    refused<InputError>("label", [&] { vae.sample(2, draw); });
    draw.conditions = {class_named("label", "seven")};
    std::vector<float> x = vae.sample(2, draw);
    std::array<float, 2 * 64> y{};
    std::array<std::int64_t, 2> sevens{7, 7};
    draw.conditions = {integers(sevens, "label")};
    vae.sample(2, draw, y);
    CHECK(x.size() == y.size() && std::equal(x.begin(), x.end(), y.begin()));
    std::vector<float> z(2 * vae.info().latents[0].count);
    vae.prior(2, draw, z);
    vae.decode(2, {array(z)}, y, draw);
    CHECK(std::equal(x.begin(), x.end(), y.begin()));
    draw.temperature = 0;
    vae.prior(2, draw, z);
    CHECK(z[0] == 0 && z.back() == 0);

    Vae plain(bundles + "/plain.zip", options);
    std::vector<float> observations = plain.sample(3), mean(9), rebuilt(18), decoded(18);
    vae_posterior q{};
    q.mean = mean.data();
    q.count = mean.size();
    plain.encode(3, array(observations), {q});
    plain.decode(3, {array(mean)}, decoded);
    plain.reconstruct(3, array(observations), rebuilt);
    CHECK(decoded == rebuilt);
    int passed = 0;
    CHECK(plain.verify([&](const char *, int result, const char *) { passed += result == 1; }) && passed >= 3);
    CHECK(plain.verify());
    int calls = 0;
    refused<std::runtime_error>("enough", [&] {
        plain.verify([&](const char *, int, const char *) { calls++, throw std::runtime_error("enough"); });
    });
    CHECK(calls == 1);
    refused<InputError>("moved", [&] { first.sample(2); });
    vae_shape wrong{};
    wrong.rank = 99;
    refused<InputError>("99", [&] { plain.decode(3, {array(mean, nullptr, wrong)}, decoded); });

    Vae dynamic(bundles + "/dynamic", options);
    Draw longer;
    longer.shapes = {shape({dynamic.info().latents[0].sizes[0], 6})};
    CHECK(dynamic.sample(2, longer).size() == 24);
    CHECK(Vae::count(dynamic.encoded_shape(dynamic.decoded_shape(longer.shapes))) ==
          dynamic.info().latents[0].sizes[0] * 6);
    return 0;
}
