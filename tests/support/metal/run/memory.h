// Checked memory: pointers that know their address space, bounds, races between barriers, reads of what nobody wrote.
#pragma once
#include "fibers.h"

namespace shim {

struct device_space {};
struct constant_space {};
struct threadgroup_space {};

// Two accesses are ordered if one thread makes both, if a threadgroup_barrier for that memory lies between them, or within a SIMD
// group a simdgroup_barrier. Barriers count epochs: of the threadgroup and of each of its SIMD groups.
static long group_epoch, simd_epoch[MAX_THREADS / LANES];

struct Shadow {  // of one element of threadgroup memory
  long write_group_epoch, write_simd_epoch, read_group_epoch, read_simd_epoch;
  short writer, reader;
  bool written, many_groups, many_lanes;
};

struct Memory {
  char *bytes;
  long size;
  const char *name;
  int granule;      // bytes of an element
  Shadow *shadow;   // threadgroup memory
  long *writers;    // outputs: 1 + the thread of the grid that wrote an element, 0 before
};

static bool inside(const Memory *m, long at, long size, long alignment) {
  if (m == nullptr || at < 0 || at + size > m->size) {
    finding("out of bounds", m ? m->name : "null", m ? at / m->granule : at);
    return false;
  }
  if (at % alignment) finding("misaligned", m->name, at / m->granule);
  return true;
}

static bool unordered(int other, long in_group, long in_simd) {
  if (other == now || in_group != group_epoch) return false;
  return other / LANES != now / LANES || in_simd == simd_epoch[now / LANES];
}

static void touch_threadgroup(Memory *m, long at, long size, bool write) {
  for (long i = at / m->granule; i < (at + size) / m->granule; i++) {
    Shadow &s = m->shadow[i];
    if (s.written && unordered(s.writer, s.write_group_epoch, s.write_simd_epoch))
      finding(write ? "race of two writes" : "race of a read after a write", m->name, i);
    bool read_now = s.reader >= 0 && s.read_group_epoch == group_epoch;
    if (write) {
      if (read_now) {
        bool other_lane = s.read_simd_epoch == simd_epoch[now / LANES] && (s.many_lanes || s.reader != now);
        if (s.many_groups || s.reader / LANES != now / LANES || other_lane) finding("race of a write after a read", m->name, i);
      }
      s.writer = (short)now;
      s.write_group_epoch = group_epoch;
      s.write_simd_epoch = simd_epoch[now / LANES];
      s.written = true;
      s.reader = -1;
      s.many_groups = s.many_lanes = false;
    } else {
      if (!s.written) finding("read of what nobody wrote", m->name, i);
      bool same_simd = read_now && s.reader / LANES == now / LANES;
      s.many_groups = read_now && (s.many_groups || !same_simd);
      s.many_lanes = same_simd && s.read_simd_epoch == simd_epoch[now / LANES] && (s.many_lanes || s.reader != now);
      s.reader = (short)now;
      s.read_group_epoch = group_epoch;
      s.read_simd_epoch = simd_epoch[now / LANES];
    }
  }
}

static long grid_thread() { return 1 + now + (long)MAX_THREADS * (group_x + 65536L * (group_y + 65536L * group_z)); }
static void touch_output(Memory *m, long at, long size, bool write) {
  if (m->writers == nullptr) return;
  for (long i = at / m->granule; i < (at + size) / m->granule; i++) {
    if (m->writers[i] != 0 && m->writers[i] != grid_thread()) finding("output touched by two threads", m->name, i);
    if (write) m->writers[i] = grid_thread();
    else if (m->writers[i] == 0) finding("read of an output nobody wrote", m->name, i);
  }
}

// A number that several lanes of a SIMD group load between two collectives crosses memory once: loads of one instruction are combined.
// The table forgets some, so that bytes are an upper bound.
struct Loaded {
  const Memory *memory;
  long at, interval;
  int lane;
};
static Loaded loaded[MAX_THREADS / LANES][256];
static bool loaded_by_another_lane(const Memory *m, long at) {
  Loaded &entry = loaded[now / LANES][(at / 4 + (long)(((uintptr_t)m >> 4) * 7)) & 255];
  bool known = entry.memory == m && entry.at == at && entry.interval == intervals[now / LANES];
  if (known) return entry.lane != now;
  entry = Loaded{m, at, intervals[now / LANES], now};
  return false;
}

static void touch(device_space, Memory *m, long at, long size, bool write) {
  (write ? counts.device_store : counts.device_load)++;
  if (write) counts.device_store_bytes += size;
  else if (!loaded_by_another_lane(m, at)) counts.device_load_bytes += size;
  touch_output(m, at, size, write);
}
static void touch(constant_space, Memory *m, long at, long size, bool write) { touch(device_space(), m, at, size, write); }
static void touch(threadgroup_space, Memory *m, long at, long size, bool write) {
  (write ? counts.threadgroup_store : counts.threadgroup_load)++;
  (write ? counts.threadgroup_store_bytes : counts.threadgroup_load_bytes) += size;
  touch_threadgroup(m, at, size, write);
}

template <typename T> struct bare { typedef T type; };
template <typename T> struct bare<const T> { typedef T type; };

template <typename Space, typename T> struct Reference {
  Memory *memory;
  long at;
  operator T() const {
    T value;
    memset(&value, 0xff, sizeof value);
    if (inside(memory, at, sizeof(T), alignof(T))) {
      touch(Space(), memory, at, sizeof(T), false);
      memcpy(&value, memory->bytes + at, sizeof value);
    }
    return value;
  }
  Reference &operator=(const T &value) {
    if (inside(memory, at, sizeof(T), alignof(T))) {
      touch(Space(), memory, at, sizeof(T), true);
      memcpy(memory->bytes + at, &value, sizeof value);
    }
    return *this;
  }
  Reference &operator=(const Reference &other) { return *this = (T)other; }
  Reference(Memory *memory, long at) : memory(memory), at(at) {}
  Reference(const Reference &) = default;
};

// A pointer into a space: no conversion to another space, none that drops const, as in MSL.
template <typename Space, typename T> struct Pointer {
  Memory *memory;
  long at;  // bytes
  Pointer(Memory *memory = nullptr, long at = 0) : memory(memory), at(at) {}
  template <typename U> explicit Pointer(Pointer<Space, U> other) : memory(other.memory), at(other.at) {}
  operator Pointer<Space, const T>() const { return Pointer<Space, const T>(memory, at); }
  Reference<Space, T> operator[](long i) const { return Reference<Space, T>(memory, at + i * (long)sizeof(T)); }
  Reference<Space, T> operator*() const { return (*this)[0]; }
  Pointer operator+(long i) const { return Pointer(memory, at + i * (long)sizeof(T)); }
  Pointer &operator+=(long i) { at += i * (long)sizeof(T); return *this; }
};
template <typename Space, typename T> struct Pointer<Space, const T> {  // loads give values: they can't be assigned to
  Memory *memory;
  long at;
  Pointer(Memory *memory = nullptr, long at = 0) : memory(memory), at(at) {}
  template <typename U> explicit Pointer(Pointer<Space, U> other) : memory(other.memory), at(other.at) {}
  const T operator[](long i) const { return (T)Reference<Space, T>(memory, at + i * (long)sizeof(T)); }
  const T operator*() const { return (*this)[0]; }
  Pointer operator+(long i) const { return Pointer(memory, at + i * (long)sizeof(T)); }
  Pointer &operator+=(long i) { at += i * (long)sizeof(T); return *this; }
};

// `threadgroup T name[N];` of a kernel: one for all threads; undefined again in each threadgroup.
static Memory *shared[32];
static int shared_count;
template <typename T, long N> struct Shared {
  char bytes[sizeof(T) * N];
  Shadow shadow[N];
  Memory memory;
  explicit Shared(const char *name) : memory{bytes, (long)sizeof bytes, name, (int)sizeof(T), shadow, nullptr} {
    shared[shared_count++] = &memory;
    counts.threadgroup_bytes += (long)sizeof bytes;
    if (counts.threadgroup_bytes > THREADGROUP_LIMIT) finding("threadgroup memory over 32 KB", name, counts.threadgroup_bytes);
    clear(&memory);
  }
  static void clear(Memory *m) {
    memset(m->bytes, 0xff, (size_t)m->size);
    memset(m->shadow, 0, (size_t)(m->size / m->granule) * sizeof(Shadow));
    for (long i = 0; i < m->size / m->granule; i++) m->shadow[i].reader = -1;
  }
  Pointer<threadgroup_space, T> all() { return Pointer<threadgroup_space, T>(&memory, 0); }
};

}  // namespace shim
