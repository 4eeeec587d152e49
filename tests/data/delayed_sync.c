/* Preloaded into an application: its syncs of a `-wal` begin and return late, by the milliseconds in BEFORE_MS and
 * AFTER_MS. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int is_wal(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path);
    return length > 4 && memcmp(path + length - 4, "-wal", 4) == 0;
}

static void wait_for(const char *name) {
    const char *ms = getenv(name);
    if (ms) usleep(atoi(ms) * 1000);
}

static int sync_late(int fd, const char *name) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    int late = is_wal(fd);
    if (late) wait_for("BEFORE_MS");
    int result = real(fd);
    if (late) wait_for("AFTER_MS");
    return result;
}

int fsync(int fd) { return sync_late(fd, "fsync"); }
int fdatasync(int fd) { return sync_late(fd, "fdatasync"); }
