// Command prometheus-agent is the storage and the remote write of Prometheus in agent mode: it appends what the test
// expects, sends it by the settings of a configuration file, and ends once its standard input does.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/metadata"
	"github.com/prometheus/prometheus/model/timestamp"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/storage/remote"
	"github.com/prometheus/prometheus/tsdb/agent"
)

// Samples of the counter. The last one is a stale marker.
const samples = 1000

func main() {
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(configFile, directory string) error {
	logger := slog.New(slog.NewTextHandler(os.Stderr, nil))
	settings, err := config.LoadFile(configFile, true, logger)
	if err != nil {
		return err
	}
	registry := prometheus.NewRegistry()
	oldest := func() (int64, error) { return 0, nil }
	sender := remote.NewStorage(logger, registry, oldest, directory, 30*time.Second, nil, false)
	options := agent.DefaultOptions()
	options.EnableMetadataWALRecords = true
	db, err := agent.Open(logger, registry, sender, directory, options)
	if err != nil {
		return err
	}
	db.SetWriteNotified(sender)
	if err := sender.ApplyConfig(settings); err != nil {
		return err
	}
	began := time.Now().Add(time.Second) // what is older than the sender's start is not sent
	if err := appendAll(db, timestamp.FromTime(began)); err != nil {
		return err
	}
	if err := json.NewEncoder(os.Stdout).Encode(timestamp.FromTime(began)); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	return errors.Join(err, db.Close(), sender.Close())
}

func appendAll(db *agent.DB, began int64) error {
	to := db.AppenderV2(context.Background())
	counter := labels.FromStrings("__name__", "requests_total", "text", `a "quoted" one`, "job", "test")
	about := metadata.Metadata{Type: model.MetricTypeCounter, Help: "Requests so far.", Unit: "requests"}
	for number := range int64(samples) {
		at := began + number
		sample := float64(number) / 4
		options := storage.AOptions{Metadata: about}
		if number == samples-1 {
			sample = math.Float64frombits(value.StaleNaN)
		}
		if number == 0 {
			trace := labels.FromStrings("trace_id", "abc")
			options.Exemplars = []exemplar.Exemplar{{Labels: trace, Value: 0.5, Ts: at, HasTs: true}}
		}
		if _, err := to.Append(0, counter, 0, at, sample, nil, nil, options); err != nil {
			return err
		}
	}
	sizes := labels.FromStrings("__name__", "sizes", "job", "test")
	native := &histogram.Histogram{
		Schema: 1, ZeroThreshold: 0.001, ZeroCount: 2, Count: 9, Sum: 20.5,
		PositiveSpans:   []histogram.Span{{Offset: 0, Length: 2}},
		PositiveBuckets: []int64{3, 1},
	}
	if _, err := to.Append(0, sizes, 0, began, 0, native, nil, storage.AOptions{}); err != nil {
		return err
	}
	return to.Commit()
}
