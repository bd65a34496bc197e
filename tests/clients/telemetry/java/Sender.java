import io.opentelemetry.api.common.AttributeKey;
import io.opentelemetry.api.common.Attributes;
import io.opentelemetry.api.logs.Logger;
import io.opentelemetry.api.logs.Severity;
import io.opentelemetry.api.metrics.DoubleHistogram;
import io.opentelemetry.api.metrics.Meter;
import io.opentelemetry.api.trace.Span;
import io.opentelemetry.api.trace.SpanKind;
import io.opentelemetry.api.trace.StatusCode;
import io.opentelemetry.api.trace.Tracer;
import io.opentelemetry.context.Context;
import io.opentelemetry.sdk.OpenTelemetrySdk;
import io.opentelemetry.sdk.autoconfigure.AutoConfiguredOpenTelemetrySdk;
import java.time.Instant;
import java.util.List;
import java.util.concurrent.TimeUnit;

/** Writes spans, log records and metrics with OpenTelemetry's SDK for Java, by the settings of its environment. */
public class Sender {
    public static void main(String[] arguments) {
        OpenTelemetrySdk sdk = AutoConfiguredOpenTelemetrySdk.initialize().getOpenTelemetrySdk();
        writeSpans(sdk.getTracerProvider().get("tests", "1.0"));
        writeLogs(sdk.getLogsBridge().get("shop.cart"));
        writeMetrics(sdk.getMeter("tests"));
        if (!sdk.shutdown().join(60, TimeUnit.SECONDS).isSuccess()) {
            System.err.println("not all was sent");
            System.exit(1);
        }
    }

    private static void writeSpans(Tracer tracer) {
        Span outer = tracer.spanBuilder("outer").setSpanKind(SpanKind.SERVER).startSpan();
        outer.setAttribute("http.status", 200);
        outer.addEvent("found", Attributes.of(AttributeKey.longKey("n"), 3L));
        Span inner = tracer.spanBuilder("inner")
                .setParent(Context.root().with(outer))
                .addLink(outer.getSpanContext(), Attributes.of(AttributeKey.stringKey("why"), "test"))
                .startSpan();
        inner.setStatus(StatusCode.ERROR, "broken");
        inner.end();
        outer.end();
    }

    private static void writeLogs(Logger logger) {
        for (long number = 0; number < 1000; number++) {
            logger.logRecordBuilder()
                    .setTimestamp(Instant.ofEpochMilli(1767225600000L + number))
                    .setSeverity(Severity.WARN)
                    .setSeverityText("WARN")
                    .setBody("line " + number + " \"quoted\"")
                    .setAttribute(AttributeKey.longKey("cart"), number)
                    .setAttribute(AttributeKey.doubleKey("half"), 0.5)
                    .emit();
        }
    }

    private static void writeMetrics(Meter meter) {
        meter.counterBuilder("orders").setUnit("1").setDescription("Orders so far.").build()
                .add(3, Attributes.of(AttributeKey.stringKey("country"), "NL"));
        meter.gaugeBuilder("temperature").build().set(21.5);
        DoubleHistogram seconds = meter.histogramBuilder("seconds")
                .setExplicitBucketBoundariesAdvice(List.of(0.1, 1.0)).build();
        for (double value : new double[] {0.05, 0.5, 5}) {
            seconds.record(value);
        }
    }
}
