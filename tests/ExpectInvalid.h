#pragma once

#include <gtest/gtest.h>

#include <string>

#include "Error.h"

/// Expects InvalidArgument whose message holds the given text.
#define EXPECT_INVALID(statement, text)                                    \
    try {                                                                  \
        statement;                                                         \
        ADD_FAILURE() << "no exception";                                   \
    } catch (const gmm::InvalidArgument& error) {                          \
        EXPECT_NE(std::string(error.what()).find(text), std::string::npos) \
                << error.what();                                           \
    }
