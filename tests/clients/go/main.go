// Command writer writes the records of its standard input with one of InfluxDB's clients for Go:
//
//	writer influxdb2 | influxdb3 | influxdb3-v2
//
// The job is JSON: {url, database, gzip, batches, records: [{time_us, tags: {name: text}, fields: [[name, type, text]]}]}.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/InfluxCommunity/influxdb3-go/v2/influxdb3"
	influxdb2 "github.com/influxdata/influxdb-client-go/v2"
	"github.com/influxdata/influxdb-client-go/v2/api/write"
)

type record struct {
	TimeUS string            `json:"time_us"`
	Tags   map[string]string `json:"tags"`
	Fields [][3]string       `json:"fields"`
}

type job struct {
	URL      string   `json:"url"`
	Database string   `json:"database"`
	Gzip     bool     `json:"gzip"`
	Batches  bool     `json:"batches"`
	Records  []record `json:"records"`
}

func (r record) time() (time.Time, error) {
	microseconds, err := strconv.ParseInt(r.TimeUS, 10, 64)
	return time.UnixMicro(microseconds), err
}

func (r record) fields() (map[string]any, error) {
	values := map[string]any{}
	for _, field := range r.Fields {
		var value any = field[2]
		var err error
		switch field[1] {
		case "int":
			value, err = strconv.ParseInt(field[2], 10, 64)
		case "float":
			value, err = strconv.ParseFloat(field[2], 64)
		case "bool":
			value = field[2] == "True"
		}
		if err != nil {
			return nil, err
		}
		values[field[0]] = value
	}
	return values, nil
}

func writeInfluxDB2(job job) error {
	options := influxdb2.DefaultOptions().SetUseGZip(job.Gzip).SetPrecision(time.Microsecond)
	options.SetBatchSize(1000).SetRetryInterval(10).SetMaxRetryInterval(100)
	client := influxdb2.NewClientWithOptions(job.URL, "secret", options)
	defer client.Close()
	points := make([]*write.Point, 0, len(job.Records))
	for _, each := range job.Records {
		at, err := each.time()
		if err != nil {
			return err
		}
		fields, err := each.fields()
		if err != nil {
			return err
		}
		points = append(points, write.NewPoint(job.Database, each.Tags, fields, at))
	}
	if !job.Batches {
		return client.WriteAPIBlocking("me", job.Database).WritePoint(context.Background(), points...)
	}
	// It repeats what was refused, and says so among its errors.
	api := client.WriteAPI("me", job.Database)
	go func() {
		for err := range api.Errors() {
			fmt.Fprintln(os.Stderr, err)
		}
	}()
	for _, point := range points {
		api.WritePoint(point)
	}
	api.Flush()
	client.Close()
	return nil
}

func writeInfluxDB3(job job, useV2 bool) error {
	threshold := 1 << 30
	if job.Gzip {
		threshold = 1
	}
	client, err := influxdb3.New(influxdb3.ClientConfig{Host: job.URL, Token: "secret", Database: job.Database})
	if err != nil {
		return err
	}
	defer client.Close()
	points := make([]*influxdb3.Point, 0, len(job.Records))
	for _, each := range job.Records {
		at, err := each.time()
		if err != nil {
			return err
		}
		fields, err := each.fields()
		if err != nil {
			return err
		}
		points = append(points, influxdb3.NewPoint(job.Database, each.Tags, fields, at))
	}
	return client.WritePoints(context.Background(), points,
		influxdb3.WithPrecision(influxdb3.Microsecond), influxdb3.WithGzipThreshold(threshold),
		influxdb3.WithUseV2Api(useV2))
}

func run(client string) error {
	var job job
	if err := json.NewDecoder(os.Stdin).Decode(&job); err != nil {
		return err
	}
	switch client {
	case "influxdb2":
		return writeInfluxDB2(job)
	case "influxdb3":
		return writeInfluxDB3(job, false)
	case "influxdb3-v2":
		return writeInfluxDB3(job, true)
	}
	return fmt.Errorf("no client is called %q", client)
}

func main() {
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
