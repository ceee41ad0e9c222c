#include "base/thread_pool.hpp"

#include <doctest/doctest.h>

#include <atomic>
#include <mutex>
#include <numeric>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

using namespace varmoe;

TEST_CASE("everything submitted has run when wait returns") {
  ThreadPool pool(4);
  CHECK(pool.size() == 4);
  std::atomic<int> ran{0};
  for (int round = 1; round <= 3; ++round) {
    for (int i = 0; i < 500; ++i) pool.submit([&] { ++ran; });
    pool.wait();
    CHECK(ran == 500 * round);
  }
}

TEST_CASE("the destructor runs what is queued") {
  std::atomic<int> ran{0};
  {
    ThreadPool pool(2);
    for (int i = 0; i < 200; ++i) pool.submit([&] { ++ran; });
  }
  CHECK(ran == 200);
}

TEST_CASE("wait rethrows what a task let out, once") {
  ThreadPool pool(2);
  std::atomic<int> ran{0};
  pool.submit([] { throw std::runtime_error("task"); });
  for (int i = 0; i < 20; ++i) pool.submit([&] { ++ran; });
  CHECK_THROWS_WITH_AS(pool.wait(), "task", std::runtime_error);
  CHECK(ran == 20);
  pool.wait();
}

TEST_CASE("parallel_for calls every index once") {
  ThreadPool pool(3);
  for (std::size_t n : {0u, 1u, 2u, 3u, 1000u}) {
    std::vector<std::atomic<int>> calls(n);
    pool.parallel_for(n, [&](std::size_t i) { ++calls[i]; });
    for (std::size_t i = 0; i < n; ++i) CHECK(calls[i] == 1);
  }
  for (int threads : {0, 1, 2, 7}) {
    std::vector<std::atomic<int>> calls(100);
    parallel_for(calls.size(), threads, [&](std::size_t i) { ++calls[i]; });
    for (auto& count : calls) CHECK(count == 1);
  }
}

TEST_CASE("fault 40: parallel_for from 32 threads at once and nested in tasks of the same pool") {
  ThreadPool pool(2);
  std::atomic<std::size_t> sum{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 32; ++t) {
    threads.emplace_back([&] {
      pool.parallel_for(20,
                        [&](std::size_t i) { pool.parallel_for(3, [&](std::size_t j) { sum += i * j; }); });
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(sum == 32u * 190 * 3);
}

TEST_CASE("parallel_for rethrows the first exception and leaves the rest out") {
  ThreadPool pool(3);
  for (int round = 0; round < 50; ++round) {
    std::atomic<std::size_t> calls{0};
    CHECK_THROWS_AS(pool.parallel_for(100000,
                                      [&](std::size_t i) {
                                        ++calls;
                                        if (i % 10 == 9) throw std::runtime_error("index");
                                      }),
                    std::runtime_error);
    CHECK(calls < 100000);
  }
  pool.wait();  // the exceptions were the callers', not the pool's
}

TEST_CASE("there is at least one core") {
  CHECK(available_cores() >= 1);
}
