#include "tools/tune/report_html.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <string_view>
#include <utility>
#include <vector>

#include "tools/tune/record_text.hpp"
#include "varmoe/kernel_config.hpp"

namespace varmoe::tools {
namespace {

constexpr const char* kStyle = R"(
body { font: 14px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 92em; padding: 0 1em; color: #1b1f24; background: #fff; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2.2em; border-bottom: 1px solid #d0d7de; padding-bottom: .2em; }
table { border-collapse: collapse; margin: .8em 0; } th, td { padding: .2em .7em; text-align: right; border-bottom: 1px solid #eaeef2; } td { white-space: nowrap; }
th { font-weight: 600; } td.text, th.text { text-align: left; } td.text { white-space: normal; } .stale { color: #9a6700; } .bad { color: #cf222e; }
td.cell { min-width: 3.6em; text-align: center; } details { margin: .5em 0; } summary { cursor: pointer; }
svg { max-width: 100%; height: auto; } .note { color: #57606a; }
)";

std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '&':
        out += "&amp;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    }
  }
  return out;
}

/// A config, in which lines may end behind its commas.
std::string breakable(std::string_view config) {
  std::string out;
  for (const char c : escaped(config)) {
    out += c;
    if (c == ',') out += "<wbr>";
  }
  return out;
}

std::string number(double value, int digits = 1) {
  return value > 0 ? fmt::format("{:.{}f}", value, digits) : "–";
}

/// Time over tokens, both by powers: winners, cost model's choice, floor.
std::string curve_svg(const ReportLayer& layer) {
  constexpr double kWidth = 720, kHeight = 300, kLeft = 60, kRight = 160, kTop = 12, kBottom = 36;
  struct Line {
    const char *name, *colour, *dash;
    std::vector<std::pair<double, double>> points;
  };
  Line lines[] = {{"winner", "#0969da", "", {}},
                  {"cost model's choice", "#bf8700", "6 3", {}},
                  {"floor", "#57606a", "2 3", {}}};
  double least = std::numeric_limits<double>::max(), most = 0;
  for (const ReportBucket& b : layer.buckets) {
    const double values[] = {b.record.us, b.record.baseline_us, b.floor_us.value_or(0)};
    for (int i = 0; i < 3; ++i) {
      if (values[i] <= 0) continue;
      lines[i].points.emplace_back(static_cast<double>(b.record.key.token), values[i]);
      least = std::min(least, values[i]);
      most = std::max(most, values[i]);
    }
  }
  const double first = std::log2(static_cast<double>(layer.buckets.front().record.key.token)),
               last = std::log2(static_cast<double>(layer.buckets.back().record.key.token));
  const double low = std::floor(std::log10(least)), high = std::max(std::ceil(std::log10(most)), low + 1);
  const auto x = [&](double tokens) {
    return last == first ? kLeft + 20
                         : kLeft + (std::log2(tokens) - first) / (last - first) * (kWidth - kLeft - kRight);
  };
  const auto y = [&](double us) {
    return kHeight - kBottom - (std::log10(us) - low) / (high - low) * (kHeight - kTop - kBottom);
  };
  std::string svg =
      fmt::format("<svg viewBox=\"0 0 {} {}\" width=\"{}\" role=\"img\" aria-label=\"time over tokens\">",
                  kWidth, kHeight, kWidth);
  for (double decade = low; decade <= high; ++decade) {
    const double us = std::pow(10, decade);
    svg += fmt::format(
        "<line x1=\"{}\" x2=\"{}\" y1=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"#eaeef2\"/>"
        "<text x=\"{}\" y=\"{:.1f}\" font-size=\"11\" text-anchor=\"end\">{:g} µs</text>",
        kLeft, kWidth - kRight, y(us), y(us), kLeft - 6, y(us) + 4, us);
  }
  for (const ReportBucket& b : layer.buckets) {
    svg += fmt::format("<text x=\"{:.1f}\" y=\"{}\" font-size=\"10\" text-anchor=\"middle\">{}</text>",
                       x(static_cast<double>(b.record.key.token)), kHeight - 16, b.record.key.token);
  }
  svg += fmt::format("<text x=\"{}\" y=\"{}\" font-size=\"11\">tokens</text>", kWidth - kRight + 30,
                     kHeight - 16);
  double legend = kTop + 12;
  for (const Line& line : lines) {
    std::string points;
    for (const auto& [tokens, us] : line.points) {
      points += fmt::format("{:.1f},{:.1f} ", x(tokens), y(us));
      svg += fmt::format(
          "<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"2.6\" fill=\"{}\"><title>{}, {} tokens: {:.1f} "
          "µs</title></circle>",
          x(tokens), y(us), line.colour, line.name, tokens, us);
    }
    svg += fmt::format(
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-dasharray=\"{}\" stroke-width=\"1.6\"/>"
        "<text x=\"{}\" y=\"{}\" font-size=\"12\" fill=\"{}\">{}</text>",
        points, line.colour, line.dash, kWidth - kRight + 16, legend, line.colour, line.name);
    legend += 18;
  }
  return svg + "</svg>";
}

std::string table_html(const ReportLayer& layer) {
  std::string html =
      "<table><tr><th>tokens</th><th>µs</th><th>floor µs</th><th>share of floor</th><th>cost model's "
      "µs</th><th>gain</th>"
      "<th>spread</th><th>TFLOP/s</th><th>GB/s</th>";
  const std::vector<ProductText> products = products_of(layer.buckets.front().record);
  for (const ProductText& product : products) html += fmt::format("<th>{} µs</th>", product.name);
  for (const ProductText& product : products) html += fmt::format("<th class=\"text\">{}</th>", product.name);
  const bool forward = layer.buckets.front().record.key.pass == TuningPass::forward;
  if (forward) html += "<th class=\"text\">one launch</th>";
  html += "<th class=\"text\">state</th></tr>\n";
  for (const ReportBucket& b : layer.buckets) {
    const TuningRecord& r = b.record;
    const std::string state = !b.stale.empty()
                                  ? fmt::format("<span class=\"stale\">{}</span>", escaped(b.stale))
                              : r.verified ? std::string("verified")
                                           : std::string("<span class=\"bad\">not verified</span>");
    html += fmt::format(
        "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{:.1f} %</td>"
        "<td>{}</td><td>{}</td>",
        r.key.token, number(r.us), number(b.floor_us.value_or(0)),
        b.floor_us ? fmt::format("{:.2f}", *b.floor_us / r.us) : "–", number(r.baseline_us),
        r.baseline_us > 0 ? fmt::format("{:+.1f} %", (r.baseline_us / r.us - 1) * 100) : "–", r.spread * 100,
        number(r.tflops), number(r.bw, 0));
    const std::vector<ProductText> of = products_of(r);
    for (const ProductText& product : of) html += fmt::format("<td>{}</td>", number(product.us));
    for (const ProductText& product : of)
      html += fmt::format("<td class=\"text\">{}</td>", escaped(product.brief));
    if (forward) html += fmt::format("<td class=\"text\">{}</td>", one_launch_text(r.config));
    html += fmt::format("<td class=\"text\">{}</td></tr>\n", state);
  }
  return html + "</table>\n";
}

/// One GEMM's landscape: the best time of each tile, a table a schedule, by colour from the fastest (green)
/// to twice as slow and more (red).
std::string landscape_html(const ReportBucket& bucket, const std::string& gemm) {
  struct Cell {
    double us = 0;
    std::string config;
  };
  std::map<Schedule, std::map<std::pair<int, int>, Cell>> tables;
  double fastest = std::numeric_limits<double>::max();
  for (const LoggedTrial& trial : bucket.trials) {
    const auto config = trial.configs.find(gemm);
    const auto time = trial.gemm_us.find(gemm);
    if (!trial.failure.empty() || config == trial.configs.end() || time == trial.gemm_us.end()) continue;
    const double us = time->second;
    if (us <= 0) continue;
    // A gradient's config is in the grammar of a GEMM's, and has fewer keys.
    const auto parsed = parse_gemm_overrides(config->second);
    if (!parsed || parsed->size() != 1) continue;
    const GemmConfig c = parsed->front().apply({});
    Cell& cell = tables[c.schedule][{c.block_m, c.block_n}];
    if (cell.us == 0 || us < cell.us) cell = {us, config->second};
    fastest = std::min(fastest, us);
  }
  std::string html;
  for (const auto& [schedule, cells] : tables) {
    std::map<int, bool> rows, columns;
    for (const auto& [tile, cell] : cells) rows[tile.first] = columns[tile.second] = true;
    html += fmt::format("<table><tr><th class=\"text\">{} {}: block_m \\ block_n</th>", gemm,
                        to_string(schedule));
    for (const auto& [n, unused] : columns) html += fmt::format("<th>{}</th>", n);
    html += "</tr>\n";
    for (const auto& [m, unused] : rows) {
      html += fmt::format("<tr><th>{}</th>", m);
      for (const auto& [n, unused_too] : columns) {
        const auto found = cells.find({m, n});
        if (found == cells.end()) {
          html += "<td class=\"cell\"></td>";
          continue;
        }
        const double slower = found->second.us / fastest;
        const int hue = static_cast<int>(120 - 120 * std::clamp(slower - 1, 0.0, 1.0));
        html +=
            fmt::format("<td class=\"cell\" style=\"background:hsl({},70%,82%)\" title=\"{}\">{:.1f}</td>",
                        hue, escaped(found->second.config), found->second.us);
      }
      html += "</tr>\n";
    }
    html += "</table>\n";
  }
  return html;
}

std::string trials_html(const ReportBucket& bucket) {
  if (bucket.trials.empty()) return {};
  std::map<std::string, int> failures;
  for (const LoggedTrial& trial : bucket.trials) {
    if (!trial.failure.empty()) ++failures[trial.failure];
  }
  std::string html = fmt::format("<details><summary>{} tokens: {} trials</summary>\n",
                                 bucket.record.key.token, bucket.trials.size());
  for (const ProductText& product : products_of(bucket.record)) html += landscape_html(bucket, product.name);
  std::vector<const LoggedTrial*> finals;
  for (const LoggedTrial& trial : bucket.trials) {
    if (trial.effort == "final" && trial.failure.empty()) finals.push_back(&trial);
  }
  std::sort(finals.begin(), finals.end(), [](const auto* a, const auto* b) { return a->us < b->us; });
  if (!finals.empty()) {
    html += "<table><tr><th class=\"text\">leaders</th><th>µs</th><th>skewed µs</th><th>spread</th></tr>\n";
    for (const LoggedTrial* t : finals) {
      std::string configs;
      for (const ProductText& product : products_of(bucket.record)) {
        const auto config = t->configs.find(product.name);
        if (config != t->configs.end())
          configs += (configs.empty() ? "" : "<br>") + breakable(config->second);
      }
      html +=
          fmt::format("<tr><td class=\"text\">{}</td><td>{:.2f}</td><td>{:.2f}</td><td>{:.1f} %</td></tr>\n",
                      configs, t->us, t->skewed_us, t->spread * 100);
    }
    html += "</table>\n";
  }
  for (const auto& [failure, count] : failures)
    html += fmt::format("<p class=\"bad\">{} ×: {}</p>\n", count, escaped(failure));
  return html + "</details>\n";
}

}  // namespace

std::string report_html(const ReportData& data) {
  std::string html =
      "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><title>varmoe tuning "
      "report</title><style>";
  html += kStyle;
  html += "</style></head><body>\n<h1>varmoe tuning report</h1>\n";
  html +=
      "<p class=\"note\">Times are of whole forwards, or whole backward passes, on uniform routing. The "
      "floor "
      "is what memory or tensor cores allow at best; gain is over the cost model's choice, measured in the "
      "same session. A forward's winner has the least of three quarters of its time and one of that on "
      "skewed "
      "routing, so that its gain may be below zero. Tables of trials show the best time that any config with "
      "that tile had, in µs that the GEMM adds to the pass.</p>\n";
  for (const ReportLayer& layer : data.layers) {
    html += fmt::format("<h2>{}: {}</h2>\n", escaped(layer.device), escaped(layer.layer));
    html += curve_svg(layer) + "\n" + table_html(layer);
    for (const ReportBucket& bucket : layer.buckets) html += trials_html(bucket);
  }
  if (data.layers.empty()) html += "<p>No tuning records.</p>\n";
  for (const std::string& problem : data.problems)
    html += fmt::format("<p class=\"bad\">{}</p>\n", escaped(problem));
  return html + "</body></html>\n";
}

}  // namespace varmoe::tools
