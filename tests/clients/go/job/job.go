// Package job reads what a program here is to write: the JSON on its standard input,
// {url, database, gzip, batches, records: [{time_us, tags: {name: text}, fields: [[name, type, text]]}]}.
package job

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"time"
)

// Record is a row. Its numbers are text.
type Record struct {
	TimeUS string            `json:"time_us"`
	Tags   map[string]string `json:"tags"`
	Fields [][3]string       `json:"fields"`
}

// Job is where to write and what.
type Job struct {
	URL      string   `json:"url"`
	Database string   `json:"database"`
	Gzip     bool     `json:"gzip"`
	Batches  bool     `json:"batches"`
	Records  []Record `json:"records"`
}

// Time is the record's time.
func (r Record) Time() (time.Time, error) {
	microseconds, err := strconv.ParseInt(r.TimeUS, 10, 64)
	return time.UnixMicro(microseconds), err
}

// Values are the fields in Go's types.
func (r Record) Values() (map[string]any, error) {
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

// Run reads the job, does it, and ends the program with an error if there is one.
func Run(write func(Job) error) {
	var job Job
	err := json.NewDecoder(os.Stdin).Decode(&job)
	if err == nil {
		err = write(job)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
