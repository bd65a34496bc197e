// Command influxdb2 writes a job with InfluxDB's client for Go, at once or in batches.
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"arcpipe-test-clients/job"

	influxdb2 "github.com/influxdata/influxdb-client-go/v2"
	"github.com/influxdata/influxdb-client-go/v2/api/write"
)

func main() {
	job.Run(func(job job.Job) error {
		options := influxdb2.DefaultOptions().SetUseGZip(job.Gzip).SetPrecision(time.Microsecond)
		options.SetBatchSize(1000).SetRetryInterval(10).SetMaxRetryInterval(100)
		client := influxdb2.NewClientWithOptions(job.URL, "secret", options)
		defer client.Close()
		points := make([]*write.Point, 0, len(job.Records))
		for _, record := range job.Records {
			at, err := record.Time()
			if err != nil {
				return err
			}
			values, err := record.Values()
			if err != nil {
				return err
			}
			points = append(points, write.NewPoint(job.Database, record.Tags, values, at))
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
		return nil
	})
}
