# edgeclean in a Makefile: an untrusted checkpoint becomes source code that firmware links.
#
#   include $(shell edgeclean integrations make)/edgeclean.mk
#
#   digits_CHECKPOINT := digits.pth
#   digits_OPTIONS    := --model digits.toml --target orin-nano --policy policy.toml
#   $(eval $(call edgeclean_model,digits))
#
#   firmware: main.o $(digits_OBJECT)
#   	$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)
#   main.o: $(digits_HEADER)
#   main.o: CFLAGS += -I$(digits_INCLUDE)
#
# For a model NAME (which is also the array's name in C):
#   NAME_CHECKPOINT   the file from the stranger
#   NAME_OPTIONS      of `edgeclean compress`, gates included
#   NAME_FORM         c (if not given) or incbin
#   NAME_ALIGN        of the array, 64 if not given
#   NAME_FILE         of the bundle, such as litert/model.tflite; model.onnx if not given
# and, once the function was called, NAME_BUNDLE, NAME_SOURCE, NAME_HEADER, NAME_OBJECT and
# NAME_INCLUDE say where things are. The target NAME_bundle makes the bundle and verifies it, each
# time, for who takes it without embedding. EDGECLEAN is how to run edgeclean, EDGECLEAN_OUT where to write.
#
# The network is made again when the checkpoint or any file that was read with it changes: the
# dependency file says which. A gate that fails stops the build and leaves the last good bundle; it
# is older than what changed, so the next build tries again. Needs GNU Make 4.
# Other options do not make it again: put them into the files that --config and --policy name. Nor
# do another NAME_ALIGN or NAME_FILE embed it again: remove NAME_INCLUDE after a change.
#
# The stranger may have named the checkpoint as well: it reaches the shell in quotes and behind --,
# and a name to whose characters Make gives a meaning is refused, at once.

EDGECLEAN ?= edgeclean
EDGECLEAN_OUT ?= build/edgeclean

edgeclean_quoted = '$(subst ','\'',$(1))'
# What a name holds beside the characters that Make, Ninja and CMake all take as they stand.
edgeclean_odd = $(shell printf %s $(call edgeclean_quoted,$(1)) \
	| LC_ALL=C tr -d 'A-Za-z0-9+,/_.(){}@!~\200-\377-')
# A line end at the end would be lost on the way through $(shell), and a colon is as odd.
define edgeclean_newline


endef
edgeclean_check = $(if $(filter-out 1,$(words $(2)))$(filter ~%,$(2))$(call \
	edgeclean_odd,$(subst $(edgeclean_newline),:,$(2))),\
	$(error edgeclean: $(1) must name one file, in letters, digits and any of +,/_.(){}@!~- but \
	no ~ in front; rename the file))

# The model's name is one in C as well; now, and not when the network was compressed.
edgeclean_check_name = $(if $(filter-out 1,$(words $(1)))$(filter 0% 1% 2% 3% 4% 5% 6% 7% 8% 9% _%,\
	$(1))$(shell printf %s $(call edgeclean_quoted,$(1)) | LC_ALL=C tr -d 'A-Za-z0-9_'),\
	$(error edgeclean: $(1) is no name in C; call edgeclean_model with letters$(edgeclean_comma) digits \
	and _$(edgeclean_comma) a letter first))
edgeclean_comma := ,

define edgeclean_model
$(call edgeclean_check_name,$(1))
$(call edgeclean_check,EDGECLEAN_OUT,$(EDGECLEAN_OUT))
$(call edgeclean_check,$(1)_CHECKPOINT,$($(1)_CHECKPOINT))
$(1)_FORM ?= c
$(1)_ALIGN ?= 64
$(1)_FILE ?= model.onnx
$(1)_BUNDLE := $$(EDGECLEAN_OUT)/$(1)/bundle
$(1)_INCLUDE := $$(EDGECLEAN_OUT)/$(1)/source
$(1)_HEADER := $$($(1)_INCLUDE)/$(1).h
$(1)_SOURCE := $$($(1)_INCLUDE)/$(1).$$(if $$(filter incbin,$$($(1)_FORM)),S,c)
$(1)_OBJECT := $$(EDGECLEAN_OUT)/$(1)/$(1).o

$$($(1)_BUNDLE)/model.onnx: $$($(1)_CHECKPOINT)
	$$(EDGECLEAN) compress $$($(1)_OPTIONS) --quiet -o $$($(1)_BUNDLE) \
		--depfile $$(EDGECLEAN_OUT)/$(1)/bundle.d -- $$(call edgeclean_quoted,$$($(1)_CHECKPOINT))
-include $$(EDGECLEAN_OUT)/$(1)/bundle.d

# What is taken from the folder may have been changed since it was made.
.PHONY: $(1)_bundle
$(1)_bundle: $$($(1)_BUNDLE)/model.onnx
	$$(EDGECLEAN) verify $$($(1)_BUNDLE) --quiet

# The header is put in place last, and is the oldest: the others are there and no older, unless
# somebody removed one, or has just asked for the other form.
$(1)_EMBED = $$(EDGECLEAN) embed $$($(1)_BUNDLE) -o $$($(1)_INCLUDE) --symbol $(1) \
	--align $$($(1)_ALIGN) --form $$($(1)_FORM) --file $$($(1)_FILE) --quiet
$$($(1)_HEADER): $$($(1)_BUNDLE)/model.onnx
	$$($(1)_EMBED)
$$($(1)_SOURCE): $$($(1)_HEADER)
	{ test -f $$@ && test ! $$@ -ot $$<; } || $$($(1)_EMBED)

$$($(1)_OBJECT): $$($(1)_SOURCE) $$($(1)_HEADER)
	$$(CC) $$(CFLAGS) -I$$($(1)_INCLUDE) -c $$($(1)_SOURCE) -o $$@
endef
