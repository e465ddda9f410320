/* The network of tests/helpers/graphs.py (conv_lrn_gemm) in three kernels, and kernels that keep busy or do harm.

   NVRTC compiles this for a GPU, and cc for the simulated driver (tests/simulated_cuda/kernels.c), which copies five
   arguments of eight bytes: so every kernel has these five. n counts what a kernel writes, one value a thread. */
#define INDEX (blockIdx.x * (long long)blockDim.x + threadIdx.x)

/* (n/512, 3, 8, 8) -> (n/512, 8, 8, 8): 3x3, padded by 1 */
KERNEL void conv_relu(const float *in, const float *weights, const float *bias, float *out, long long n) {
    long long i = INDEX;
    if (i >= n) return;
    int x = i % 8, y = i / 8 % 8, channel = i / 64 % 8;
    const float *image = in + i / 512 * 192;
    float sum = bias[channel];
    for (int c = 0; c < 3; c++)
        for (int dy = -1; dy <= 1; dy++)
            for (int dx = -1; dx <= 1; dx++)
                if (y + dy >= 0 && y + dy < 8 && x + dx >= 0 && x + dx < 8)
                    sum += weights[((channel * 3 + c) * 3 + dy + 1) * 3 + dx + 1] * image[(c * 8 + y + dy) * 8 + x + dx];
    out[i] = sum > 0 ? sum : 0;
}

/* (n/128, 8, 8, 8) -> (n/128, 8, 4, 4): LRN(5, alpha 1e-2, beta 0.75, k 2), then 2x2 */
KERNEL void lrn_pool(const float *in, const float *unused, const float *unused_too, float *out, long long n) {
    long long i = INDEX;
    if (i >= n) return;
    int x = i % 4, y = i / 4 % 4, channel = i / 16 % 8;
    const float *image = in + i / 128 * 512;
    float most = 0; /* ReLU came before */
    for (int dy = 0; dy < 2; dy++)
        for (int dx = 0; dx < 2; dx++) {
            const float *pixel = image + (2 * y + dy) * 8 + 2 * x + dx;
            float squares = 0;
            for (int c = channel - 2; c <= channel + 2; c++)
                if (c >= 0 && c < 8) squares += pixel[c * 64] * pixel[c * 64];
            float value = pixel[channel * 64] / powf(2 + 1e-2f / 5 * squares, 0.75f);
            if (value > most) most = value;
        }
    out[i] = most;
    (void)unused, (void)unused_too;
}

/* (n/4, 128) -> (n/4, 4) */
KERNEL void gemm(const float *in, const float *weights, const float *bias, float *out, long long n) {
    long long i = INDEX;
    if (i >= n) return;
    const float *row = in + i / 4 * 128, *column = weights + i % 4 * 128;
    float sum = bias[i % 4];
    for (int k = 0; k < 128; k++) sum += row[k] * column[k];
    out[i] = sum;
}

/* n clock cycles */
KERNEL void spin(const float *in, const float *unused, const float *unused_too, float *out, long long n) {
    long long start = clock64();
    while (clock64() - start < n) {}
    (void)in, (void)unused, (void)unused_too, (void)out;
}

/* just behind the n floats at out */
KERNEL void write_behind(const float *in, const float *unused, const float *unused_too, float *out, long long n) {
    out[n + INDEX] = 0;
    (void)in, (void)unused, (void)unused_too;
}
