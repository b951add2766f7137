# The few atomic operations the data path needs, as compiler built-ins.
from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef extern from * nogil:
    """
    #define fast_load_ptr(p) ((void *)__atomic_load_n((void **)(p), __ATOMIC_ACQUIRE))
    #define fast_store_ptr(p, v) __atomic_store_n((void **)(p), (void *)(v), __ATOMIC_RELEASE)
    #define fast_load_u64(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
    #define fast_store_u64(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
    #define fast_swap_u64(p, v) __atomic_exchange_n((p), (v), __ATOMIC_SEQ_CST)
    #define fast_add_u64(p, v) __atomic_fetch_add((p), (v), __ATOMIC_RELAXED)
    #define fast_add_u32(p, v) __atomic_fetch_add((p), (v), __ATOMIC_SEQ_CST)
    #define fast_load_u32(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
    #define fast_store_u32(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
    #define fast_store_u8(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
    #define fast_swap_u32(p, v) __atomic_exchange_n((p), (v), __ATOMIC_ACQUIRE)
    #if defined(__x86_64__) || defined(__i386__)
    #define fast_pause() __builtin_ia32_pause()
    #else
    #define fast_pause() ((void)0)
    #endif
    #define fast_fence() __atomic_thread_fence(__ATOMIC_SEQ_CST)
    #define fast_or_u32(p, v) __atomic_fetch_or((p), (v), __ATOMIC_RELAXED)
    #define fast_and_u32(p, v) __atomic_fetch_and((p), (v), __ATOMIC_RELAXED)
    #define fast_prefetch(p) __builtin_prefetch(p)
    static inline int fast_cas_u64(uint64_t *p, uint64_t *expected, uint64_t wanted)
    {
        return __atomic_compare_exchange_n(p, expected, wanted, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    }
    """
    void *load_ptr "fast_load_ptr"(void *p)
    void store_ptr "fast_store_ptr"(void *p, void *v)
    uint64_t load_u64 "fast_load_u64"(uint64_t *p)
    void store_u64 "fast_store_u64"(uint64_t *p, uint64_t v)
    uint64_t swap_u64 "fast_swap_u64"(uint64_t *p, uint64_t v)
    uint64_t add_u64 "fast_add_u64"(uint64_t *p, uint64_t v)
    uint32_t load_u32 "fast_load_u32"(uint32_t *p)
    void store_u32 "fast_store_u32"(uint32_t *p, uint32_t v)
    void store_u8 "fast_store_u8"(uint8_t *p, uint8_t v)
    uint32_t swap_u32 "fast_swap_u32"(uint32_t *p, uint32_t v)
    void fence "fast_fence"()
    uint32_t add_u32 "fast_add_u32"(uint32_t *p, uint32_t v)
    uint32_t or_u32 "fast_or_u32"(uint32_t *p, uint32_t v)
    uint32_t and_u32 "fast_and_u32"(uint32_t *p, uint32_t v)
    void pause "fast_pause"()
    void prefetch "fast_prefetch"(const void *p)
    int cas_u64 "fast_cas_u64"(uint64_t *p, uint64_t *expected, uint64_t wanted)
