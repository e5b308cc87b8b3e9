// Publishes commands: go run publish.go COMMAND.json …
// (apt install golang-github-rabbitmq-amqp091-go-dev, or go get github.com/rabbitmq/amqp091-go)
// Exits with 0 only if the broker has confirmed every command. AMQP_URI is the address of the broker.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}

func main() {
	uri := os.Getenv("AMQP_URI")
	if uri == "" {
		uri = "amqp://guest:guest@127.0.0.1:5672/%2f"
	}
	connection := must(amqp.Dial(uri))
	channel := must(connection.Channel())
	must(0, channel.Confirm(false))
	// The broker returns a message that no queue accepts, before its confirm.
	returned := channel.NotifyReturn(make(chan amqp.Return, 1))
	// With a listener: before 1.6 a deferred confirm that comes before its registration never resolves.
	confirms := channel.NotifyPublish(make(chan amqp.Confirmation, 1))
	code := 0
	for _, file := range os.Args[1:] {
		command := amqp.Publishing{
			ContentType:   "application/json",
			DeliveryMode:  amqp.Persistent,
			CorrelationId: filepath.Base(file), // becomes the correlation id of the event, e.g. an order number
			Body:          must(os.ReadFile(file)),
		}
		late := time.AfterFunc(30*time.Second, func() { log.Fatal("no confirm, fate unknown: publish again ", file) })
		// Mandatory: the broker returns it if no queue accepts it.
		must(0, channel.PublishWithContext(context.Background(), "redemption.commands", "redemption.use", true, false, command))
		// If the connection is lost, the command counts as not confirmed: its fate is unknown.
		taken := (<-confirms).Ack
		late.Stop()
		if len(returned) > 0 {
			<-returned
			taken = false
		}
		// It is always safe to publish the same command again, unchanged.
		fmt.Println(map[bool]string{true: "confirmed", false: "NOT taken"}[taken], file)
		code |= map[bool]int{false: 1}[taken]
	}
	os.Exit(code)
}
