// Loaded before the C library: counts what a program asks it for, and can make a request fail.
#include <dlfcn.h>
#include <errno.h>
#include <stddef.h>

namespace {

thread_local long requests = 0, failing = -1;

bool fails() { return requests++ == failing; }

template <typename Function>
Function* of_the_library(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

}  // namespace

extern "C" {

// Of this thread, so far.
long count_requests() { return requests; }

// This thread's request number `at` from now on fails, and no other; -1: none.
void fail_request(long at) { failing = at < 0 ? -1 : requests + at; }

void* malloc(size_t size) {
  static void* (*next)(size_t) = nullptr;  // looked up without a guard, which might ask for memory
  if (!next) next = of_the_library<void*(size_t)>("malloc");
  return fails() ? nullptr : next(size);
}

int posix_memalign(void** to, size_t alignment, size_t size) {
  static int (*next)(void**, size_t, size_t) = nullptr;
  if (!next) next = of_the_library<int(void**, size_t, size_t)>("posix_memalign");
  return fails() ? ENOMEM : next(to, alignment, size);
}

}  // extern "C"
