// Any bytes as a safetensors file: parsed, or refused with an Error; never a crash. What is
// accepted must keep the header's promise that the tensors tile the data area.
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/error.h"
#include "load/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const duet::SafetensorsHeader header =
        duet::parse_safetensors_header(std::as_bytes(std::span(data, size)), size, "fuzz.safetensors");
    uint64_t reached = 0;
    for (const duet::SafetensorsEntry& entry : header.tensors) {
      DUET_CHECK(entry.begin == reached && entry.end >= entry.begin);
      reached = entry.end;
    }
    DUET_CHECK(header.data_offset + reached == size);
  } catch (const duet::Error&) {
  }
  return 0;
}
