// Preloaded into a process: the n-th allocation of C++ or of posix_memalign from now on fails, once.
#include <dlfcn.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <new>

static std::atomic<long> left{-1}, seen{0};

// 0: nothing fails, and allocations are counted
extern "C" void fail_allocation(long n) {
  seen = 0;
  left = n == 0 ? -1 : n;
}
extern "C" long allocations() { return seen; }

static bool fails() {
  ++seen;
  return left.load() > 0 && left.fetch_sub(1) == 1;
}

void* operator new(std::size_t bytes) {
  void* data = fails() ? nullptr : std::malloc(bytes ? bytes : 1);
  if (!data) throw std::bad_alloc();
  return data;
}
void* operator new[](std::size_t bytes) { return operator new(bytes); }
void operator delete(void* data) noexcept { std::free(data); }
void operator delete(void* data, std::size_t) noexcept { std::free(data); }
void operator delete[](void* data) noexcept { std::free(data); }
void operator delete[](void* data, std::size_t) noexcept { std::free(data); }

extern "C" int posix_memalign(void** data, std::size_t alignment, std::size_t bytes) {
  static auto* real = reinterpret_cast<int (*)(void**, std::size_t, std::size_t)>(dlsym(RTLD_NEXT, "posix_memalign"));
  return fails() ? ENOMEM : real(data, alignment, bytes);
}
