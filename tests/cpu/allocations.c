/* Loaded before the C library: counts what a program asks it for, and can make a request fail. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stddef.h>

static __thread long requests, failing = -1;

/* Of this thread, so far. */
long count_requests(void) { return requests; }

/* This thread's request number `at` from now on fails, and no other; -1: none. */
void fail_request(long at) { failing = at < 0 ? -1 : requests + at; }

static int fails(void) { return requests++ == failing; }

void* malloc(size_t size) {
  static void* (*next)(size_t);
  if (!next) next = (void* (*)(size_t))dlsym(RTLD_NEXT, "malloc");
  return fails() ? NULL : next(size);
}

int posix_memalign(void** to, size_t alignment, size_t size) {
  static int (*next)(void**, size_t, size_t);
  if (!next) next = (int (*)(void**, size_t, size_t))dlsym(RTLD_NEXT, "posix_memalign");
  return fails() ? ENOMEM : next(to, alignment, size);
}
