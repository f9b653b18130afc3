#include "serve/tls.h"

#include <fmt/format.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <climits>

#include "base/error.h"

namespace duet {

namespace {

[[noreturn]] void refuse(const char* flag, const std::string& file) {
  const unsigned long code = ERR_get_error();
  ERR_clear_error();
  const char* reason = ERR_reason_error_string(code);
  throw Error(ErrorKind::kInvalidArgument,
              fmt::format("{} {}: {}", flag, file, reason ? reason : "the file cannot be read as PEM"));
}

}  // namespace

TlsContext::TlsContext(const TlsFiles& files) : context_(SSL_CTX_new(TLS_server_method())) {
  if (!context_) throw Error(ErrorKind::kInternal, "OpenSSL gives no TLS context");
  SSL_CTX_set_min_proto_version(context_, TLS1_2_VERSION);
  SSL_CTX_set_mode(context_, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  try {
    if (SSL_CTX_use_certificate_chain_file(context_, files.certificate.c_str()) != 1)
      refuse("--ssl-certfile", files.certificate);
    if (SSL_CTX_use_PrivateKey_file(context_, files.key.c_str(), SSL_FILETYPE_PEM) != 1)
      refuse("--ssl-keyfile", files.key);
    if (SSL_CTX_check_private_key(context_) != 1) refuse("--ssl-keyfile", files.key);
    if (!files.client_ca.empty()) {
      if (SSL_CTX_load_verify_locations(context_, files.client_ca.c_str(), nullptr) != 1)
        refuse("--ssl-ca-certs", files.client_ca);
      SSL_CTX_set_verify(
          context_, SSL_VERIFY_PEER | (files.require_client ? SSL_VERIFY_FAIL_IF_NO_PEER_CERT : 0), nullptr);
    }
  } catch (...) {
    SSL_CTX_free(context_);
    throw;
  }
}

TlsContext::~TlsContext() {
  SSL_CTX_free(context_);
}

SocketStream::SocketStream(int fd, const TlsContext* tls) : fd_(fd) {
  if (!tls) return;
  ssl_ = SSL_new(tls->get());
  if (!ssl_) {
    close(fd);
    throw Error(ErrorKind::kResourceExhausted, "no memory for a TLS connection");
  }
  SSL_set_fd(ssl_, fd);
  SSL_set_accept_state(ssl_);
}

SocketStream::~SocketStream() {
  SSL_free(ssl_);
  close(fd_);
}

IoResult SocketStream::tls_result(int result) {
  const int error = SSL_get_error(ssl_, result);
  ERR_clear_error();
  if (error == SSL_ERROR_WANT_READ) return IoResult::kWantRead;
  if (error == SSL_ERROR_WANT_WRITE) return IoResult::kWantWrite;
  return IoResult::kClosed;
}

IoResult SocketStream::read(char* bytes, size_t size, size_t& done) {
  done = 0;
  if (ssl_) {
    const int result = SSL_read_ex(ssl_, bytes, size, &done);
    return result == 1 ? IoResult::kDone : tls_result(result);
  }
  const ssize_t result = recv(fd_, bytes, size, 0);
  if (result > 0) {
    done = static_cast<size_t>(result);
    return IoResult::kDone;
  }
  const bool again = result < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR);
  return again ? IoResult::kWantRead : IoResult::kClosed;
}

IoResult SocketStream::write(const char* bytes, size_t size, size_t& done) {
  done = 0;
  if (ssl_) {
    const int result = SSL_write_ex(ssl_, bytes, size, &done);
    return result == 1 ? IoResult::kDone : tls_result(result);
  }
  const ssize_t result = ::send(fd_, bytes, size, MSG_NOSIGNAL);
  if (result >= 0) {
    done = static_cast<size_t>(result);
    return IoResult::kDone;
  }
  return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR ? IoResult::kWantWrite : IoResult::kClosed;
}

void SocketStream::shutdown_write() {
  if (ssl_) SSL_shutdown(ssl_);
  ERR_clear_error();
  shutdown(fd_, SHUT_WR);
}

}  // namespace duet
