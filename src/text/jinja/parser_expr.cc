#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "text/jinja/parser.h"

namespace duet::jinja {

ExprPtr Parser::make(ExprType type, const std::string& name) const {
  auto expr = std::make_unique<Expr>();
  expr->type = type;
  expr->line = peek().line;
  expr->name = name;
  return expr;
}

/// Chains like a.b.c or x + y + z grow without recursion of the parser, so height is counted too.
void Parser::adopt(Expr& parent, ExprPtr child) const {
  if (child != nullptr) {
    parent.depth = std::max(parent.depth, child->depth + 1);
    if (parent.depth > kMaxDepth) fail("an expression is nested too deeply");
  }
  parent.args.push_back(std::move(child));
}

ExprPtr Parser::parse_tuple(bool with_condition) {
  ExprPtr first = parse_expression(with_condition);
  if (!at_operator(",")) return first;
  ExprPtr tuple = make(ExprType::kTuple);
  adopt(*tuple, std::move(first));
  while (take_operator(",")) {
    const bool ends =
        peek().type == TokenType::kVariableEnd || peek().type == TokenType::kBlockEnd || at_operator(")");
    if (ends) break;
    adopt(*tuple, parse_expression(with_condition));
  }
  return tuple;
}

ExprPtr Parser::parse_expression(bool with_condition) {
  const Nesting nesting(*this);
  ExprPtr expr = parse_or();
  while (with_condition && take_name("if")) {
    ExprPtr condition = make(ExprType::kCondition);
    adopt(*condition, std::move(expr));
    adopt(*condition, parse_or());
    adopt(*condition, take_name("else") ? parse_expression() : nullptr);
    expr = std::move(condition);
  }
  return expr;
}

ExprPtr Parser::parse_or() {
  ExprPtr left = parse_and();
  while (take_name("or")) {
    ExprPtr both = make(ExprType::kOr);
    adopt(*both, std::move(left));
    adopt(*both, parse_and());
    left = std::move(both);
  }
  return left;
}

ExprPtr Parser::parse_and() {
  ExprPtr left = parse_not();
  while (take_name("and")) {
    ExprPtr both = make(ExprType::kAnd);
    adopt(*both, std::move(left));
    adopt(*both, parse_not());
    left = std::move(both);
  }
  return left;
}

ExprPtr Parser::parse_not() {
  if (!take_name("not")) return parse_compare();
  const Nesting nesting(*this);
  ExprPtr expr = make(ExprType::kNot);
  adopt(*expr, parse_not());
  return expr;
}

ExprPtr Parser::parse_compare() {
  ExprPtr first = parse_sum();
  ExprPtr chain;
  while (true) {
    static constexpr std::string_view kOperators[] = {"==", "!=", "<=", ">=", "<", ">"};
    std::string op;
    for (std::string_view candidate : kOperators) {
      if (op.empty() && take_operator(candidate)) op = candidate;
    }
    if (op.empty() && take_name("in")) op = "in";
    if (op.empty() && at_name("not") && peek_next().type == TokenType::kName && peek_next().text == "in") {
      at_ += 2;
      op = "not in";
    }
    if (op.empty()) break;
    if (chain == nullptr) {
      chain = make(ExprType::kCompare);
      adopt(*chain, std::move(first));
    }
    chain->ops.push_back(op);
    adopt(*chain, parse_sum());
  }
  return chain != nullptr ? std::move(chain) : std::move(first);
}

ExprPtr Parser::parse_sum() {
  ExprPtr left = parse_concatenation();
  while (at_operator("+") || at_operator("-")) {
    ExprPtr both = make(ExprType::kBinary, tokens_[at_++].text);
    adopt(*both, std::move(left));
    adopt(*both, parse_concatenation());
    left = std::move(both);
  }
  return left;
}

ExprPtr Parser::parse_concatenation() {
  ExprPtr first = parse_product();
  if (!at_operator("~")) return first;
  ExprPtr all = make(ExprType::kConcatenate);
  adopt(*all, std::move(first));
  while (take_operator("~")) adopt(*all, parse_product());
  return all;
}

ExprPtr Parser::parse_product() {
  ExprPtr left = parse_power();
  while (at_operator("*") || at_operator("/") || at_operator("//") || at_operator("%")) {
    ExprPtr both = make(ExprType::kBinary, tokens_[at_++].text);
    adopt(*both, std::move(left));
    adopt(*both, parse_power());
    left = std::move(both);
  }
  return left;
}

ExprPtr Parser::parse_power() {
  ExprPtr left = parse_unary();
  while (take_operator("**")) {
    ExprPtr both = make(ExprType::kBinary, "**");
    adopt(*both, std::move(left));
    adopt(*both, parse_unary());
    left = std::move(both);
  }
  return left;
}

ExprPtr Parser::parse_unary(bool with_filter) {
  ExprPtr expr;
  if (at_operator("-") || at_operator("+")) {
    const Nesting nesting(*this);
    expr = make(tokens_[at_].text == "-" ? ExprType::kNegative : ExprType::kPositive);
    ++at_;
    adopt(*expr, parse_unary(false));
  } else {
    expr = parse_primary();
  }
  expr = parse_postfix(std::move(expr));
  return with_filter ? parse_filters(std::move(expr)) : std::move(expr);
}

ExprPtr Parser::parse_primary() {
  const Token& token = peek();
  ExprPtr expr = make(ExprType::kLiteral);
  if (token.type == TokenType::kString) {
    Str text;
    while (peek().type == TokenType::kString) text.append(tokens_[at_++].text);  // 'a' 'b' is 'ab'
    expr->value = std::make_shared<const Str>(std::move(text));
  } else if (token.type == TokenType::kInteger) {
    int64_t number = 0;
    const auto parsed = std::from_chars(token.text.data(), token.text.data() + token.text.size(), number);
    if (parsed.ec != std::errc()) fail("an integer beyond 64 bits");
    expr->value = number;
    ++at_;
  } else if (token.type == TokenType::kFloat) {
    double number = 0;
    const auto parsed = std::from_chars(token.text.data(), token.text.data() + token.text.size(), number);
    if (parsed.ec != std::errc()) fail("a number out of range");
    expr->value = number;
    ++at_;
  } else if (token.type == TokenType::kName) {
    const std::string& name = token.text;
    if (name == "true" || name == "True" || name == "false" || name == "False") {
      expr->value = name[0] == 't' || name[0] == 'T';
      ++at_;
    } else if (name == "none" || name == "None") {
      expr->value = None{};
      ++at_;
    } else {
      expr->type = ExprType::kName;
      expr->name = expect_identifier();
    }
  } else if (take_operator("(")) {
    if (take_operator(")")) {
      expr->type = ExprType::kTuple;
    } else {
      expr = parse_tuple();
      expect_operator(")");
    }
  } else if (take_operator("[")) {
    expr->type = ExprType::kList;
    while (!at_operator("]")) {
      adopt(*expr, parse_expression());
      if (!take_operator(",")) break;
    }
    expect_operator("]");
  } else if (take_operator("{")) {
    return parse_dict();
  } else {
    fail(fmt::format("expected an expression, found {}", describe(token)));
  }
  return expr;
}

ExprPtr Parser::parse_dict() {
  ExprPtr expr = make(ExprType::kDict);
  while (!at_operator("}")) {
    adopt(*expr, parse_expression());
    expect_operator(":");
    adopt(*expr, parse_expression());
    if (!take_operator(",")) break;
  }
  expect_operator("}");
  return expr;
}

ExprPtr Parser::parse_postfix(ExprPtr expr) {
  while (true) {
    if (take_operator(".")) {
      ExprPtr next = make(ExprType::kAttribute);
      if (peek().type == TokenType::kInteger) {  // x.0 is x[0]
        next->type = ExprType::kItem;
        adopt(*next, std::move(expr));
        adopt(*next, parse_primary());
      } else {
        if (peek().type != TokenType::kName)
          fail(fmt::format("expected a name behind '.', found {}", describe(peek())));
        next->name = tokens_[at_++].text;
        adopt(*next, std::move(expr));
      }
      expr = std::move(next);
    } else if (take_operator("[")) {
      expr = parse_subscript(std::move(expr));
    } else if (at_operator("(")) {
      ExprPtr call = make(ExprType::kCall);
      adopt(*call, std::move(expr));
      parse_arguments(*call);
      expr = std::move(call);
    } else {
      return expr;
    }
  }
}

ExprPtr Parser::parse_subscript(ExprPtr expr) {
  ExprPtr parts[3];
  int count = 0;
  bool slice = false;
  while (true) {
    if (!at_operator(":") && !at_operator("]")) parts[count] = parse_expression();
    if (count == 2 || !take_operator(":")) break;
    slice = true;
    ++count;
  }
  if (at_operator(",")) unsupported("a subscript of several values");
  expect_operator("]");
  if (!slice && parts[0] == nullptr) fail("an empty subscript");
  ExprPtr next = make(slice ? ExprType::kSlice : ExprType::kItem);
  adopt(*next, std::move(expr));
  for (int i = 0; i < (slice ? 3 : 1); ++i) adopt(*next, std::move(parts[i]));
  return next;
}

ExprPtr Parser::parse_filters(ExprPtr expr) {
  while (true) {
    if (at_operator("|")) {
      parse_one_filter(expr);
    } else if (take_name("is")) {
      expr = parse_test(std::move(expr));
    } else if (at_operator("(")) {
      ExprPtr call = make(ExprType::kCall);
      adopt(*call, std::move(expr));
      parse_arguments(*call);
      expr = std::move(call);
    } else {
      return expr;
    }
  }
}

/// At '|' (or at the name of a {% filter %} tag): wraps `expr`.
void Parser::parse_one_filter(ExprPtr& expr) {
  ++at_;
  const std::string name = expect_identifier();
  if (!is_filter(name)) {
    --at_;
    unsupported("filter '" + name + "'");
  }
  ExprPtr next = make(ExprType::kFilter, name);
  adopt(*next, std::move(expr));
  if (at_operator("(")) parse_arguments(*next);
  expr = std::move(next);
}

ExprPtr Parser::parse_test(ExprPtr expr) {
  const bool negated = take_name("not");
  if (peek().type != TokenType::kName)
    fail(fmt::format("expected a test behind 'is', found {}", describe(peek())));
  const std::string name = peek().text;  // 'none', 'true', 'in' are tests too
  if (!is_test(name)) unsupported("test '" + name + "'");
  ++at_;
  ExprPtr test = make(ExprType::kTest, name);
  adopt(*test, std::move(expr));
  const TokenType type = peek().type;
  const bool value = type == TokenType::kString || type == TokenType::kInteger || type == TokenType::kFloat ||
                     at_operator("[") || at_operator("{");
  const bool word = type == TokenType::kName && !at_name("else") && !at_name("or") && !at_name("and") &&
                    !at_name("is") && !at_name("if") && !at_name("in") && !at_name("not");
  if (at_operator("(")) {
    parse_arguments(*test);
  } else if (value || word) {
    adopt(*test, parse_postfix(parse_primary()));
  }
  if (!negated) return test;
  ExprPtr inverse = make(ExprType::kNot);
  adopt(*inverse, std::move(test));
  return inverse;
}

void Parser::parse_arguments(Expr& call) {
  expect_operator("(");
  while (!at_operator(")")) {
    if (at_operator("*") || at_operator("**")) unsupported("'*' in arguments");
    if (peek().type == TokenType::kName && peek_next().type == TokenType::kOperator &&
        peek_next().text == "=") {
      const std::string name = expect_identifier();
      ++at_;
      ExprPtr value = parse_expression();
      call.depth = std::max(call.depth, value->depth + 1);
      if (call.depth > kMaxDepth) fail("an expression is nested too deeply");
      call.named.emplace_back(name, std::move(value));
    } else {
      if (!call.named.empty()) fail("a positional argument behind a named one");
      adopt(call, parse_expression());
    }
    if (!take_operator(",")) break;
  }
  expect_operator(")");
}

}  // namespace duet::jinja
