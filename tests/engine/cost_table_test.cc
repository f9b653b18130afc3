#include "engine/cost_table.h"

#include <gtest/gtest.h>

namespace duet {
namespace {

TEST(CostCurve, OfTheFirstSteadySamplesTheLowerMedianCounts) {
  CostCurve curve;
  curve.add_steady(512, 0.55);  // a neighbour was busy
  EXPECT_DOUBLE_EQ(curve.level(512, 0), 0.55);
  curve.add_steady(512, 0.06);
  EXPECT_DOUBLE_EQ(curve.level(512, 0), 0.06);
  curve.add_steady(512, 0.60);
  curve.add_steady(512, 0.04);
  EXPECT_DOUBLE_EQ(curve.level(512, 0), 0.06);
  EXPECT_DOUBLE_EQ(curve.level(64, 0), 0.06);
  curve.add_steady(32, 0.5);  // of another size
  EXPECT_DOUBLE_EQ(curve.level(32, 0), 0.5);
  EXPECT_DOUBLE_EQ(curve.level(512, 0), 0.06);
  // Later on what is measured is followed.
  for (int i = 0; i < 60; ++i) curve.add_steady(512, 0.3);
  EXPECT_NEAR(curve.level(512, 0), 0.3, 0.01);
}

TEST(CostCurve, PointsOfARunBeforeAreFollowed) {
  CostCurve curve;
  curve.set_points({{512, 0.1, 8}});
  curve.add_steady(512, 0.9);
  EXPECT_DOUBLE_EQ(curve.level(512, 0), 0.2);  // an eighth of the way
}

}  // namespace
}  // namespace duet
