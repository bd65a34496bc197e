// Command otel-sdk writes spans, log records and metrics with OpenTelemetry's SDK for Go, by the settings of its
// environment.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlplog/otlploghttp"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetrichttp"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/log"
	"go.opentelemetry.io/otel/metric"
	sdklog "go.opentelemetry.io/otel/sdk/log"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

func main() {
	ctx := context.Background()
	if err := errors.Join(writeSpans(ctx), writeLogs(ctx), writeMetrics(ctx)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES are read by the SDK.
func writeSpans(ctx context.Context) error {
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		return err
	}
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithResource(resource.Default()))
	tracer := provider.Tracer("tests", trace.WithInstrumentationVersion("1.0"))
	ctx, outer := tracer.Start(ctx, "outer", trace.WithSpanKind(trace.SpanKindServer))
	outer.SetAttributes(attribute.Int("http.status", 200))
	outer.AddEvent("found", trace.WithAttributes(attribute.Int("n", 3)))
	link := trace.Link{SpanContext: outer.SpanContext(), Attributes: []attribute.KeyValue{attribute.String("why", "test")}}
	_, inner := tracer.Start(ctx, "inner", trace.WithLinks(link))
	inner.SetStatus(codes.Error, "broken")
	inner.End()
	outer.End()
	return provider.Shutdown(ctx)
}

func writeLogs(ctx context.Context) error {
	exporter, err := otlploghttp.New(ctx)
	if err != nil {
		return err
	}
	processor := sdklog.NewBatchProcessor(exporter)
	provider := sdklog.NewLoggerProvider(sdklog.WithProcessor(processor), sdklog.WithResource(resource.Default()))
	logger := provider.Logger("shop.cart")
	for number := range 1000 {
		var record log.Record
		record.SetTimestamp(time.UnixMilli(1767225600000 + int64(number)))
		record.SetSeverity(log.SeverityWarn)
		record.SetSeverityText("WARN")
		record.SetBody(attribute.StringValue(fmt.Sprintf("line %d \"quoted\"", number)))
		record.AddAttributes(attribute.Int("cart", number), attribute.Float64("half", 0.5), attribute.ByteSlice("raw", []byte{1, 2}))
		logger.Emit(ctx, record)
	}
	return provider.Shutdown(ctx)
}

func writeMetrics(ctx context.Context) error {
	exporter, err := otlpmetrichttp.New(ctx)
	if err != nil {
		return err
	}
	reader := sdkmetric.NewPeriodicReader(exporter, sdkmetric.WithInterval(time.Hour))
	exponential := sdkmetric.NewView(
		sdkmetric.Instrument{Name: "sizes"},
		sdkmetric.Stream{Aggregation: sdkmetric.AggregationBase2ExponentialHistogram{MaxSize: 160, MaxScale: 20}},
	)
	provider := sdkmetric.NewMeterProvider(
		sdkmetric.WithReader(reader), sdkmetric.WithView(exponential), sdkmetric.WithResource(resource.Default()),
	)
	meter := provider.Meter("tests")
	orders, err1 := meter.Int64Counter("orders", metric.WithUnit("1"), metric.WithDescription("Orders so far."))
	temperature, err2 := meter.Float64Gauge("temperature")
	seconds, err3 := meter.Float64Histogram("seconds", metric.WithExplicitBucketBoundaries(0.1, 1))
	sizes, err4 := meter.Float64Histogram("sizes")
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return err
	}
	orders.Add(ctx, 3, metric.WithAttributes(attribute.String("country", "NL")))
	temperature.Record(ctx, 21.5)
	for _, value := range []float64{0.05, 0.5, 5} {
		seconds.Record(ctx, value)
		sizes.Record(ctx, value)
	}
	return provider.Shutdown(ctx)
}
