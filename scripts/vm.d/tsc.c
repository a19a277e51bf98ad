/* Prints how many thousand ticks a second this machine's time stamp counter makes, by the kernel's clock. */
#include <stdio.h>
#include <time.h>
#include <x86intrin.h>

struct reading {
    unsigned long long ticks;
    double seconds;
};

/* Both at the same moment: of several looks the one that was interrupted least. */
static struct reading look(void)
{
    struct reading best = {0, 0};
    unsigned long long shortest = ~0ULL;
    for (int i = 0; i < 20; i++) {
        struct timespec now;
        unsigned long long before = __rdtsc();
        clock_gettime(CLOCK_MONOTONIC_RAW, &now);
        unsigned long long took = __rdtsc() - before;
        if (took < shortest) {
            shortest = took;
            best.ticks = before + took / 2;
            best.seconds = now.tv_sec + now.tv_nsec / 1e9;
        }
    }
    return best;
}

int main(void)
{
    struct reading first = look(), last;
    do
        last = look();
    while (last.seconds - first.seconds < 0.1);
    printf("%.0f\n", (last.ticks - first.ticks) / (last.seconds - first.seconds) / 1000);
    return 0;
}
