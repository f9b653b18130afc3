// IP addresses as text and as sockets take them, and which of a host's own the other ranks may use.
//   DUET_TCP_PORTS=first-last     listen on these ports (for firewalls), one per rank of a host
//   DUET_TCP_INTERFACES=eth0,10.0.0.0/8   addresses to offer and in which order; default: Open MPI's
//                                 btl_tcp_if_include (as OMPI_MCA_btl_tcp_if_include), else all
#pragma once

#include <sys/socket.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace duet {

struct Address {
  sockaddr_storage storage{};
  socklen_t length = 0;
  int family() const { return storage.ss_family; }
};

/// Of IPv4 or IPv6; nullopt for any other text.
std::optional<Address> parse_address(const std::string& text, int port);

/// "10.1.2.3:4000" of a socket address, without the port when `port` is false.
std::string shown(const sockaddr* address, bool port);

/// Whether both are of one family and their first `bits` bits agree.
bool same_prefix(const Address& a, const Address& b, int bits);

/// DUET_TCP_INTERFACES or what stands in for it; empty: all.
std::string interface_list();

/// This host's addresses that others may reach, in the order of the list.
std::vector<std::string> own_addresses();

/// Items of DUET_TCP_INTERFACES: the place of the first item that names the interface or holds the address
/// (text, IPv4 or IPv6), or -1. Throws Error(kInvalidArgument) for an item that is neither name nor CIDR.
int match_interface(const std::string& list, const std::string& interface, const std::string& address);

/// DUET_TCP_PORTS as its text, empty where it is not set.
std::string port_range_text();

/// "first-last" or "port"; throws Error(kInvalidArgument). {0, 0} for an empty text: any port.
std::pair<int, int> parse_port_range(const std::string& text);

}  // namespace duet
