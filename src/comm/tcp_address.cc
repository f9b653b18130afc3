#include "comm/tcp_address.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <sstream>

#include "base/error.h"

namespace duet {

namespace {

std::string variable(const char* name) {
  const char* text = std::getenv(name);
  return text == nullptr ? "" : text;
}

}  // namespace

std::optional<Address> parse_address(const std::string& text, int port) {
  Address a;
  auto* v4 = reinterpret_cast<sockaddr_in*>(&a.storage);
  auto* v6 = reinterpret_cast<sockaddr_in6*>(&a.storage);
  if (inet_pton(AF_INET, text.c_str(), &v4->sin_addr) == 1) {
    v4->sin_family = AF_INET;
    v4->sin_port = htons(static_cast<uint16_t>(port));
    a.length = sizeof(sockaddr_in);
    return a;
  }
  if (inet_pton(AF_INET6, text.c_str(), &v6->sin6_addr) == 1) {
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(static_cast<uint16_t>(port));
    a.length = sizeof(sockaddr_in6);
    return a;
  }
  return std::nullopt;
}

std::string shown(const sockaddr* address, bool port) {
  char text[INET6_ADDRSTRLEN] = "?";
  if (address->sa_family == AF_INET) {
    const auto* v4 = reinterpret_cast<const sockaddr_in*>(address);
    inet_ntop(AF_INET, &v4->sin_addr, text, sizeof(text));
    return port ? fmt::format("{}:{}", text, ntohs(v4->sin_port)) : text;
  }
  if (address->sa_family == AF_INET6) {
    const auto* v6 = reinterpret_cast<const sockaddr_in6*>(address);
    inet_ntop(AF_INET6, &v6->sin6_addr, text, sizeof(text));
    return port ? fmt::format("[{}]:{}", text, ntohs(v6->sin6_port)) : text;
  }
  return text;
}

bool same_prefix(const Address& a, const Address& b, int bits) {
  if (a.family() != b.family()) return false;
  const bool v4 = a.family() == AF_INET;
  const auto bytes = [&](const Address& x) {
    return v4 ? reinterpret_cast<const uint8_t*>(&reinterpret_cast<const sockaddr_in*>(&x.storage)->sin_addr)
              : reinterpret_cast<const uint8_t*>(
                    &reinterpret_cast<const sockaddr_in6*>(&x.storage)->sin6_addr);
  };
  for (int i = 0; i < bits; ++i) {
    const int shift = 7 - i % 8;
    if (((bytes(a)[i / 8] ^ bytes(b)[i / 8]) >> shift & 1) != 0) return false;
  }
  return true;
}

std::string interface_list() {
  const std::string own = variable("DUET_TCP_INTERFACES");
  return own.empty() ? variable("OMPI_MCA_btl_tcp_if_include") : own;
}

std::vector<std::string> own_addresses() {
  const std::string list = interface_list();
  std::vector<std::pair<int, std::string>> found;
  ifaddrs* all = nullptr;
  if (getifaddrs(&all) != 0) return {};
  for (const ifaddrs* one = all; one != nullptr; one = one->ifa_next) {
    if (one->ifa_addr == nullptr || (one->ifa_flags & IFF_UP) == 0 || (one->ifa_flags & IFF_LOOPBACK) != 0)
      continue;
    const int family = one->ifa_addr->sa_family;
    if (family != AF_INET && family != AF_INET6) continue;
    if (family == AF_INET6 &&
        IN6_IS_ADDR_LINKLOCAL(&reinterpret_cast<const sockaddr_in6*>(one->ifa_addr)->sin6_addr))
      continue;
    const std::string text = shown(one->ifa_addr, false);
    const int place = list.empty() ? (family == AF_INET ? 0 : 1) : match_interface(list, one->ifa_name, text);
    if (place >= 0) found.emplace_back(place, text);
  }
  freeifaddrs(all);
  std::stable_sort(found.begin(), found.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<std::string> addresses;
  for (auto& [place, text] : found) addresses.push_back(std::move(text));
  return addresses;
}

int match_interface(const std::string& list, const std::string& interface, const std::string& address) {
  const auto own = parse_address(address, 0);
  std::istringstream items(list);
  int place = 0;
  for (std::string item; std::getline(items, item, ','); ++place) {
    const size_t slash = item.find('/');
    const auto network = parse_address(item.substr(0, slash), 0);
    if (slash == std::string::npos && !network) {
      if (item == interface) return place;
      continue;
    }
    const int most = network && network->family() == AF_INET ? 32 : 128;
    int bits = most;
    if (slash != std::string::npos) {
      const char* first = item.c_str() + slash + 1;
      const char* last = item.c_str() + item.size();
      const auto [end, error] = std::from_chars(first, last, bits);
      if (error != std::errc() || end != last) bits = -1;
    }
    if (!network || bits < 0 || bits > most) {
      throw Error(ErrorKind::kInvalidArgument,
                  fmt::format("DUET_TCP_INTERFACES (or OMPI_MCA_btl_tcp_if_include) names \"{}\"; expected "
                              "interfaces and networks such as eth0,10.0.0.0/24",
                              item));
    }
    if (own && same_prefix(*own, *network, bits)) return place;
  }
  return -1;
}

std::string port_range_text() {
  return variable("DUET_TCP_PORTS");
}

std::pair<int, int> parse_port_range(const std::string& text) {
  if (text.empty()) return {0, 0};
  const size_t dash = text.find('-');
  const auto number = [](const std::string& digits) {
    int value = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    return error == std::errc() && end == digits.data() + digits.size() ? value : 0;
  };
  const int first = number(text.substr(0, dash));
  const int last = dash == std::string::npos ? first : number(text.substr(dash + 1));
  if (first < 1 || last > 65535 || last < first) {
    throw Error(ErrorKind::kInvalidArgument,
                fmt::format("DUET_TCP_PORTS is \"{}\"; expected first-last with 1 <= first <= last <= 65535, "
                            "such as 20000-20063",
                            text));
  }
  return {first, last};
}

}  // namespace duet
