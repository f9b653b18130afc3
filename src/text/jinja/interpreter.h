// Runs a parsed chat template: Jinja's statements and scoping, as transformers configures them
// (loop controls, raise_exception, strftime_now, immutable values). One Interpreter per rendering.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "text/jinja/ast.h"
#include "text/jinja/builtins.h"

namespace duet::jinja {

class Interpreter {
 public:
  explicit Interpreter(Runtime& rt) : rt_(rt), scopes_(1) {}

  /// A variable of the template's context.
  void define(const std::string& name, Value value) { set(scopes_[0], name, std::move(value)); }
  /// The rendered text. Throws Error with the line: what the template raises or gets wrong is
  /// kInvalidArgument, what we cannot do kUnsupported, what costs too much kResourceExhausted.
  Str run(const Body& body);

 private:
  using Scope = std::vector<std::pair<std::string, Value>>;
  enum class Flow { kNormal, kBreak, kContinue };
  class Nesting;

  static void set(Scope& scope, const std::string& name, Value value);
  Value lookup(const std::string& name);

  Flow execute(const Body& body);
  Flow execute(const Stmt& stmt);
  Flow execute_for(const Stmt& stmt);
  void execute_set(const Stmt& stmt);
  void assign(const Stmt& stmt, Scope& scope, const Value& value);
  Str capture(const Body& body, Flow& flow);
  void print(const Str& text);

  Value evaluate(const Expr& expr);
  Value evaluate_compare(const Expr& expr);
  Value evaluate_container(const Expr& expr);
  Value evaluate_call(const Expr& expr);
  Value apply_filters(const Expr& expr, Value input);
  Args arguments(const Expr& expr);
  Value binary(const std::string& op, const Value& left, const Value& right);
  Value add(const Value& left, const Value& right);
  Value multiply(const Value& left, const Value& right);
  Value integer_operation(char op, int64_t a, int64_t b);
  Value call_macro(const Macro& macro, const Args& args);
  Value call_global(const std::string& name, const Args& args);

  Runtime& rt_;
  std::vector<Scope> scopes_;
  size_t base_ = 0;  // scopes below (but for the first) are hidden inside a macro
  Str* out_ = nullptr;
};

}  // namespace duet::jinja
