// Private to parser.cc and parser_expr.cc: recursive descent over the tokens, with Jinja's grammar
// and precedence. Depth is bounded both by recursion and by the height of what is built.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "text/jinja/ast.h"
#include "text/jinja/lexer.h"

namespace duet::jinja {

// Published templates stay under 30. One level costs up to nine stack frames of the parser
// (one per precedence), about 3 KiB, and two of the evaluator.
inline constexpr int kMaxDepth = 100;

class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}
  Body run();

 private:
  struct Nesting {
    explicit Nesting(Parser& p) : parser(p) {
      if (++parser.nesting_ > kMaxDepth) parser.fail("nested too deeply");
    }
    ~Nesting() { --parser.nesting_; }
    Nesting(const Nesting&) = delete;
    Nesting& operator=(const Nesting&) = delete;
    Parser& parser;
  };

  [[noreturn]] void fail(const std::string& text) const;
  [[noreturn]] void unsupported(const std::string& what) const;
  static std::string describe(const Token& token);
  const Token& peek() const { return tokens_[at_]; }
  const Token& peek_next() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  bool at_operator(std::string_view text) const;
  bool at_name(std::string_view text) const;
  bool take_operator(std::string_view text);
  bool take_name(std::string_view text);
  void expect_operator(std::string_view text);
  void expect_block_end();
  std::string expect_identifier();

  // parser.cc: statements. parse_body stops at one of the names in `ends`, not consumed.
  Body parse_body(const std::vector<std::string_view>& ends);
  void parse_statement(Stmt& stmt);
  void parse_if(Stmt& stmt);
  void parse_for(Stmt& stmt);
  void parse_set(Stmt& stmt);
  void parse_macro(Stmt& stmt);
  void parse_with(Stmt& stmt);
  std::vector<std::string> parse_targets();

  // parser_expr.cc, loosest first.
  ExprPtr parse_tuple(bool with_condition = true);
  ExprPtr parse_expression(bool with_condition = true);
  ExprPtr parse_or();
  ExprPtr parse_and();
  ExprPtr parse_not();
  ExprPtr parse_compare();
  ExprPtr parse_sum();
  ExprPtr parse_concatenation();
  ExprPtr parse_product();
  ExprPtr parse_power();
  ExprPtr parse_unary(bool with_filter = true);
  ExprPtr parse_primary();
  ExprPtr parse_postfix(ExprPtr expr);
  ExprPtr parse_filters(ExprPtr expr);
  void parse_one_filter(ExprPtr& expr);
  ExprPtr parse_test(ExprPtr expr);
  ExprPtr parse_subscript(ExprPtr expr);
  ExprPtr parse_dict();
  void parse_arguments(Expr& call);
  ExprPtr make(ExprType type, const std::string& name = {}) const;
  void adopt(Expr& parent, ExprPtr child) const;

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int nesting_ = 0;
  int loops_ = 0;
};

}  // namespace duet::jinja
