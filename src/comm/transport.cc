#include "comm/transport.h"

#include <fmt/format.h>

namespace duet {

std::string disagreement(int from, size_t sent, int to, size_t expected, bool up_to) {
  return fmt::format(
      "rank {} sends {} bytes to rank {}, which expects {}{}: the ranks disagree about a collective", from,
      sent, to, up_to ? "at most " : "", expected);
}

}  // namespace duet
