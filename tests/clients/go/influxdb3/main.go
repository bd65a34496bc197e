// Command influxdb3 writes a job with InfluxDB's client for Go: `influxdb3 v2` by the API of InfluxDB 2.
package main

import (
	"context"
	"os"

	"arcpipe-test-clients/job"

	"github.com/InfluxCommunity/influxdb3-go/v2/influxdb3"
)

func main() {
	job.Run(func(job job.Job) error {
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
		for _, record := range job.Records {
			at, err := record.Time()
			if err != nil {
				return err
			}
			values, err := record.Values()
			if err != nil {
				return err
			}
			points = append(points, influxdb3.NewPoint(job.Database, record.Tags, values, at))
		}
		return client.WritePoints(context.Background(), points,
			influxdb3.WithPrecision(influxdb3.Microsecond), influxdb3.WithGzipThreshold(threshold),
			influxdb3.WithUseV2Api(len(os.Args) > 1 && os.Args[1] == "v2"))
	})
}
