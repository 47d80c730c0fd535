package launch

import (
	"strings"

	"sft"
)

// Words splits a command into words at blanks, as a person writes it. Single
// and double quotes keep blanks; nothing else is special, and no shell ever
// sees the command.
func Words(command string) ([]string, error) {
	var words []string
	var word strings.Builder
	var quote rune
	begun := false
	for _, r := range command {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(r)
		case r == '\'' || r == '"':
			quote, begun = r, true
		case r == ' ' || r == '\t' || r == '\n':
			if begun {
				words = append(words, word.String())
			}
			word.Reset()
			begun = false
		default:
			word.WriteRune(r)
			begun = true
		}
	}
	if quote != 0 {
		return nil, &sft.Error{Code: sft.Invalid, Msg: "command " + sft.Quote(command) + " has a quote that does not end", Hint: "close the quote"}
	}
	if begun {
		words = append(words, word.String())
	}
	return words, nil
}
