// --hosts: hosts and ranks, the command that comes out, what is refused. Nothing here starts mpirun's
// ranks; tests/cli/mpi.sh does.
#include "cli/launch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>

#include "cli/usage_error.h"
#include "comm/mpi_transport.h"
#include "run_cli.h"

namespace duet {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

std::string placed(const std::string& list, int ranks) {
  try {
    std::string text;
    for (const HostSlots& host : parse_hosts(list, ranks, "--hosts")) {
      text += (text.empty() ? "" : " ") + host.name + "=" + std::to_string(host.slots);
    }
    return text;
  } catch (const UsageError& error) {
    return error.what();
  }
}

TEST(Hosts, RanksGoToHosts) {
  EXPECT_EQ(placed("a,b", 0), "a=1 b=1");
  EXPECT_EQ(placed("a,b", 2), "a=1 b=1");
  EXPECT_EQ(placed("a,b", 8), "a=4 b=4");
  EXPECT_EQ(placed("a:2,b", 0), "a=2 b=1");
  EXPECT_EQ(placed("a:2,b", 3), "a=2 b=1");
  EXPECT_EQ(placed("b,a,b", 0), "b=2 a=1");
  EXPECT_EQ(placed("10.0.0.7:16,node-3.rack_1", 17), "10.0.0.7=16 node-3.rack_1=1");
  EXPECT_EQ(placed("localhost", 2), "localhost=2");
}

TEST(Hosts, WhatDoesNotComeOutEvenSaysHow) {
  EXPECT_THAT(placed("a,b", 3), HasSubstr("does not divide evenly over 2 hosts"));
  EXPECT_THAT(placed("a,b", 1), HasSubstr("does not divide evenly over 2 hosts"));
  EXPECT_THAT(placed("a:2,b:2", 8), HasSubstr("has room for 4 ranks, and --tensor-parallel-size is 8"));
}

TEST(Hosts, NamesAndSlotsAreChecked) {
  for (const char* list : {"", ",", "a,", ",a", "a,,b", "-x", "a b", "a;b", "a/b", "$(a)", ":2"}) {
    EXPECT_THAT(placed(list, 0), HasSubstr("is no host name")) << list;
  }
  for (const char* list : {"a:", "a:0", "a:-1", "a:x", "a:2x", "a:4097", "a:99999999999", "a:1:2"}) {
    EXPECT_THAT(placed(list, 0), HasSubstr("expected 1 to 4096")) << list;
  }
}

TEST(Words, SplitAsAShellDoes) {
  const auto split = [](const std::string& line) { return split_words(line, "--mpirun-args"); };
  EXPECT_THAT(split(""), ElementsAre());
  EXPECT_THAT(split("  --mca btl\ttcp,self\n"), ElementsAre("--mca", "btl", "tcp,self"));
  EXPECT_THAT(split(R"(a 'b c' "d e"f '' \ g)"), ElementsAre("a", "b c", "d ef", "", " g"));
  EXPECT_THAT(split(R"("a\"b\\c\d" 'e\f')"), ElementsAre(R"(a"b\c\d)", R"(e\f)"));
  EXPECT_THAT(split("'$HOME' $(x)"), ElementsAre("$HOME", "$(x)"));
  for (const char* open : {"'a", "\"a", "a 'b\""}) {
    EXPECT_THROW(split(open), UsageError) << open;
  }
}

TEST(Words, QuotedWordsComeBack) {
  const std::vector<std::string> words{"plain", "", "two words", "it's", "\"", "$x`y`", "a\nb", "\\"};
  EXPECT_EQ(split_words(quote_words(words), "test"), words);
  EXPECT_EQ(quote_words({"/usr/bin/mpirun", "a:1,b:1", "--x=1"}), "/usr/bin/mpirun a:1,b:1 --x=1");
}

/// A PATH with an mpirun that answers --version as `version` says.
class Launch : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!have_mpi()) GTEST_SKIP() << "this build has no MPI";
    open_mpi_ = std::string(mpi_library()).find("Open MPI") != std::string::npos;
    write_mpirun(open_mpi_ ? "mpirun (Open MPI) 4.1.4" : "HYDRA build details:");
  }
  void write_mpirun(const std::string& version) {
    const std::string path = dir_.write("mpirun", "#!/bin/sh\necho '" + version + "'\n");
    std::filesystem::permissions(path, std::filesystem::perms::owner_all);
    env_["PATH"] = dir_.file("");
  }
  CliRun printed(std::vector<std::string> args) const {
    args.emplace_back("--print-launch");
    return run(args, env_);
  }
  const TempDir dir_;
  Environment env_;
  bool open_mpi_ = true;
};

TEST_F(Launch, PrintsWhatItWouldRun) {
  const CliRun result = printed({"generate", "M", "--hosts", "a,b", "--prompt", "it is", "--dbo=on"});
  EXPECT_EQ(result.code, kExitOk) << result.err;
  EXPECT_EQ(newlines(result.out), 1u);
  EXPECT_THAT(result.out, HasSubstr(open_mpi_ ? "--host a:1,b:1 -n 2 --bind-to none"
                                              : "-hosts a:1,b:1 -n 2 -bind-to none"));
  EXPECT_THAT(result.out, EndsWith(" generate M --prompt 'it is' --dbo=on\n"));
  EXPECT_EQ(result.out.find("--allow-run-as-root") != std::string::npos, open_mpi_ && geteuid() == 0);
}

TEST_F(Launch, FlagsMayStandInFrontOfTheVerb) {
  const CliRun front =
      printed({"--hosts=a,b", "-tp", "2", "--enable-dbo", "logits", "M", "--prompt-token-ids", "1"});
  EXPECT_EQ(front.code, kExitOk) << front.err;
  EXPECT_THAT(front.out, HasSubstr(" logits M --prompt-token-ids 1"));
  EXPECT_THAT(front.out, AllOf(HasSubstr(" -tp 2"), HasSubstr(" --enable-dbo"), Not(HasSubstr("--hosts"))));
  EXPECT_THAT(run({"--hosts", "a,b", "--nonsense", "generate", "M"}).err,
              HasSubstr("unknown verb \"--nonsense\""));
}

TEST_F(Launch, RanksSeeNoneOfItsFlags) {
  env_["DUET_HOSTS"] = "c,d";
  env_["DUET_DBO"] = "on";
  env_["VLLM_ASCEND_ENABLE_DBO"] = "1";
  env_["DUET_MPIRUN_ARGS"] = "-x 'A B'";
  const CliRun result = printed({"generate", "M", "--prompt=--hosts", "--no-print-launch"});
  EXPECT_THAT(result.out, AllOf(HasSubstr("c:1,d:1"), HasSubstr(" -x 'A B' "), Not(HasSubstr("DUET_HOSTS"))));
  EXPECT_THAT(result.out, AllOf(EndsWith(" generate M --prompt=--hosts\n"), Not(HasSubstr("DUET_MPIRUN"))));
  // Hydra hands on the whole environment, Open MPI what it is told.
  EXPECT_EQ(result.out.find("-x DUET_DBO -x VLLM_ASCEND_ENABLE_DBO") != std::string::npos, open_mpi_);
}

TEST_F(Launch, RanksThatShareAHostGetCoresOfTheirOwnWhereTheyFit) {
  const std::vector<std::string> args{"generate", "M", "--prompt", "x", "--hosts", "a:1,b:1"};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), args.begin(), args.end());
    return printed(more).out;
  };
  const char* none = open_mpi_ ? " --bind-to none " : " -bind-to none ";
  EXPECT_THAT(with({"--threads", "1"}), HasSubstr(none));
  EXPECT_THAT(with({"--hosts", "a:2,b:2"}), HasSubstr(none));
  EXPECT_THAT(with({"--hosts", "a:4000", "--threads", "9"}), HasSubstr(none));
  EXPECT_THAT(with({"--mpirun-args=--bind-to socket"}),
              AllOf(HasSubstr("--bind-to socket"), Not(HasSubstr(none))));
}

TEST_F(Launch, RefusesWhatCannotWork) {
  const auto refused = [&](std::vector<std::string> more) {
    more.insert(more.begin(), {"generate", "M", "--prompt", "x"});
    const CliRun result = printed(more);
    EXPECT_NE(result.code, kExitOk);
    EXPECT_EQ(newlines(result.err), 1u) << result.err;
    return result.err;
  };
  EXPECT_THAT(refused({"--hosts", "a,b", "-tp", "3"}), HasSubstr("does not divide evenly"));
  EXPECT_THAT(refused({"--hosts", "a,b", "--distributed-executor-backend", "threads"}),
              HasSubstr("drop one of them"));
  EXPECT_THAT(refused({"--hosts", "a,b", "--mpirun-args", "'x"}), HasSubstr("--mpirun-args: the quote"));
  EXPECT_THAT(refused({}), HasSubstr("--print-launch is about the mpirun of --hosts"));
  write_mpirun(open_mpi_ ? "HYDRA build details:" : "mpirun (Open MPI) 4.1.4");
  EXPECT_THAT(refused({"--hosts", "a,b"}), HasSubstr("but this duet was built with"));
  write_mpirun("something else");
  EXPECT_THAT(refused({"--hosts", "a,b"}), HasSubstr("no MPI library that is known here"));
  env_["PATH"] = "/nowhere";
  EXPECT_THAT(refused({"--hosts", "a,b"}), HasSubstr("needs mpirun, which is not on PATH; install"));
  EXPECT_THAT(run({"doctor", "--hosts", "a"}, env_).err, HasSubstr("one rank has no link"));
}

TEST_F(Launch, UnderMpiItStartsNoMpi) {
  setenv("PMI_RANK", "0", 1);
  const CliRun result = printed({"generate", "M", "--prompt", "x", "--hosts", "a,b"});
  unsetenv("PMI_RANK");
  EXPECT_EQ(result.code, kExitUsage);
  EXPECT_THAT(result.err, StartsWith("duet generate: --hosts, but mpirun or srun started this process"));
}

}  // namespace
}  // namespace duet
